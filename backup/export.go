package backup

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/skiff-sh/skiff/fsm/store"
)

// ErrNoSuch says that a snapshot has nothing of what was asked for.
var ErrNoSuch = errors.New("the snapshot has none")

// ExportOptions for Export.
type ExportOptions struct {
	JSON bool // instead of YAML
	// Namespace restricts to the objects of one, and the Namespace itself.
	Namespace string
	// Kind restricts to one kind: by its name, or its resource with or without the
	// group (Pod, pods, widgets.example.com), in any case.
	Kind string
	// Raw keeps what belongs to the objects as they were and keeps others from
	// being made of them: uid, resourceVersion, managedFields.
	Raw bool
	// Unowned leaves out what controllers make anew: objects with an owner, and
	// those of the last rank.
	Unowned bool
	// Open opens Secrets; without it they are left out.
	Open     OpenSealed
	Progress Progress
}

// Exported says what Export has written.
type Exported struct {
	Snapshot *Info `json:"snapshot"`
	Objects  int   `json:"objects"`
	// Sealed are the objects left out because they could not be opened, Unknown
	// those whose kind this version does not know, both as RESOURCE/NAMESPACE/NAME.
	Sealed  []string `json:"sealed"`
	Unknown []string `json:"unknown"`
}

// exportRanks order kinds so that what others need comes first; what is not
// listed is between the last two.
var exportRanks = [][]string{
	{"namespaces", "customresourcedefinitions.apiextensions.k8s.io", "priorityclasses", "storageclasses", "nodes"},
	{"serviceaccounts", "secrets", "configmaps", "roles", "clusterroles", "rolebindings", "clusterrolebindings",
		"persistentvolumes", "persistentvolumeclaims", "limitranges", "resourcequotas", "services"},
	nil,
	{"events", "leases", "endpoints", "endpointslices", "controllerrevisions"},
}

func exportRank(resource string) int {
	for i, list := range exportRanks {
		if slices.Contains(list, resource) {
			return i
		}
	}
	return 2
}

// Export writes the objects of a snapshot as one List that kubectl reads. The
// file is verified before the first byte is written; ErrNoSuch means that nothing
// is there to write. It reads the file once for each rank of kinds and holds one
// object at a time.
func Export(ctx context.Context, f *File, w io.Writer, o ExportOptions) (*Exported, error) {
	x := &exporter{o: o, kinds: map[string]string{}, namespaces: map[string]bool{}}
	own := map[string][]byte{}
	info, err := f.each(ctx, "verifying", o.Progress, func(kv *store.KeyValue) error {
		if strings.HasPrefix(kv.Key, OwnPrefix) {
			own[kv.Key] = kv.Value
		}
		return x.count(kv)
	})
	if err != nil {
		return nil, err
	}
	if err := x.found(); err != nil {
		return nil, err
	}
	if o.Open != nil {
		if x.open, err = o.Open(own); err != nil {
			return nil, err
		}
	}
	x.out.Snapshot = info
	x.w = bufio.NewWriterSize(w, 64<<10)
	x.begin()
	for rank := range exportRanks {
		if !x.ranks[rank] || o.Unowned && rank == len(exportRanks)-1 {
			continue
		}
		if err := f.Rewind(); err != nil {
			return nil, err
		}
		again, err := f.each(ctx, "exporting", o.Progress, func(kv *store.KeyValue) error { return x.write(rank, kv) })
		if err != nil {
			return nil, err
		}
		if again.Hash != info.Hash {
			return nil, errChanged
		}
	}
	x.end()
	if err := x.w.Flush(); err != nil {
		return nil, err
	}
	return &x.out, nil
}

var errChanged = errors.New("the file was changed while it was read")

type exporter struct {
	o          ExportOptions
	open       OpenValue
	w          *bufio.Writer
	out        Exported
	ranks      [4]bool
	kinds      map[string]string // kind by resource, of all objects
	namespaces map[string]bool
	matched    bool
}

// count notes what there is.
func (x *exporter) count(kv *store.KeyValue) error {
	if !strings.HasPrefix(kv.Key, objectPrefix) {
		return nil
	}
	resource, namespace, name := splitKey(kv.Key)
	if resource == "namespaces" {
		namespace = name
	}
	x.namespaces[namespace] = true
	if _, ok := x.kinds[resource]; !ok {
		gvk, err := typeOf(kv.Key, kv.Value)
		if err != nil {
			gvk.Kind = ""
		}
		x.kinds[resource] = gvk.Kind
	}
	if x.wanted(kv.Key) {
		x.matched, x.ranks[exportRank(resource)] = true, true
	}
	return nil
}

// found says what is wrong with what was asked for.
func (x *exporter) found() error {
	switch {
	case x.matched:
		return nil
	case x.o.Kind != "" && !slices.ContainsFunc(slices.Collect(maps.Keys(x.kinds)), x.isKind):
		kinds := slices.Compact(slices.Sorted(maps.Values(x.kinds)))
		return fmt.Errorf("%w of kind %s; it has %s", ErrNoSuch, x.o.Kind, strings.Join(kinds, ", "))
	case x.o.Namespace != "" && !x.namespaces[x.o.Namespace]:
		return fmt.Errorf("%w in a namespace %s, which it does not have", ErrNoSuch, x.o.Namespace)
	}
	return fmt.Errorf("%w of that", ErrNoSuch)
}

func (x *exporter) wanted(key string) bool {
	resource, namespace, name := splitKey(key)
	if x.o.Namespace != "" && namespace != x.o.Namespace && (resource != "namespaces" || name != x.o.Namespace) {
		return false
	}
	return x.o.Kind == "" || x.isKind(resource)
}

func (x *exporter) isKind(resource string) bool {
	plural, _, _ := strings.Cut(resource, ".")
	return strings.EqualFold(x.o.Kind, x.kinds[resource]) || strings.EqualFold(x.o.Kind, resource) || strings.EqualFold(x.o.Kind, plural)
}

// write writes one object if its turn has come.
func (x *exporter) write(rank int, kv *store.KeyValue) error {
	if !strings.HasPrefix(kv.Key, objectPrefix) || !x.wanted(kv.Key) {
		return nil
	}
	if resource, _, _ := splitKey(kv.Key); exportRank(resource) != rank {
		return nil
	}
	id := strings.TrimPrefix(kv.Key, objectPrefix)
	value := kv.Value
	if sealed(value) {
		if x.open == nil {
			x.out.Sealed = append(x.out.Sealed, id)
			return nil
		}
		var err error
		if value, err = x.open(kv.Key, value); err != nil {
			return err
		}
	}
	obj, err := decodeObject(kv.Key, value)
	if errors.Is(err, errUnknownKind) {
		x.out.Unknown = append(x.out.Unknown, id)
		return nil
	}
	if err != nil {
		return err
	}
	if x.o.Unowned && len(obj.GetOwnerReferences()) > 0 {
		return nil
	}
	x.clean(obj, kv.ModRevision)
	x.out.Objects++
	return x.item(obj)
}

func (x *exporter) clean(obj *unstructured.Unstructured, revision int64) {
	if x.o.Raw {
		obj.SetResourceVersion(fmt.Sprint(revision))
		return
	}
	for _, field := range []string{"uid", "resourceVersion", "managedFields"} {
		unstructured.RemoveNestedField(obj.Object, "metadata", field)
	}
}

func (x *exporter) begin() {
	if x.o.JSON {
		x.w.WriteString(`{"apiVersion":"v1","kind":"List","metadata":{},"items":[`)
	} else {
		x.w.WriteString("apiVersion: v1\nkind: List\nmetadata: {}\nitems:")
	}
}

// item writes an element of the list. An error of the writer stays in it.
func (x *exporter) item(obj *unstructured.Unstructured) error {
	if x.o.JSON {
		b, err := json.Marshal(obj.Object)
		if err != nil {
			return err
		}
		if x.out.Objects > 1 {
			x.w.WriteString(",")
		}
		x.w.WriteString("\n")
		_, err = x.w.Write(b)
		return err
	}
	b, err := yaml.Marshal(obj.Object)
	if err != nil {
		return err
	}
	indent := "\n- "
	for line := range bytes.Lines(b) {
		if line = bytes.TrimSuffix(line, []byte("\n")); len(line) == 0 {
			x.w.WriteString("\n") // within a block of text
			continue
		}
		x.w.WriteString(indent)
		x.w.Write(line)
		indent = "\n  "
	}
	_, err = x.w.WriteString("") // the first error
	return err
}

func (x *exporter) end() {
	switch {
	case x.o.JSON:
		x.w.WriteString("\n]}\n")
	case x.out.Objects == 0:
		x.w.WriteString(" []\n")
	default:
		x.w.WriteString("\n")
	}
}
