package static

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	serializer "k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/skiff-sh/skiff/node/pod"
)

// Parse reads the one Pod of a manifest, YAML or JSON, for this node. prepare
// adds defaults and checks the pod as the API does.
func Parse(manifest []byte, node string, prepare func(*v1.Pod) error) (*v1.Pod, error) {
	p, err := decode(manifest)
	if err != nil {
		return nil, err
	}
	if p.Name == "" {
		return nil, errors.New("metadata.name: Required value")
	}
	if errs := refused(p); len(errs) > 0 {
		return nil, errs.ToAggregate()
	}
	// What a copy of an object from the API has beside what it asks for.
	p.ObjectMeta = metav1.ObjectMeta{Name: p.Name, Namespace: p.Namespace, Labels: p.Labels, Annotations: p.Annotations}
	delete(p.Annotations, v1.MirrorPodAnnotationKey)
	delete(p.Annotations, pod.HashAnnotation)
	delete(p.Annotations, pod.SourceAnnotation)
	p.Status = v1.PodStatus{}
	if p.Namespace == "" {
		p.Namespace = v1.NamespaceDefault
	}
	// Before defaults, which may change with skiff's version: the pod goes on then.
	uid, err := hash(p, node)
	if err != nil {
		return nil, err
	}
	p.UID, p.Generation = uid, 1
	p.Name += "-" + strings.ToLower(node)
	p.Spec.NodeName = node
	if p.Annotations == nil {
		p.Annotations = map[string]string{}
	}
	p.Annotations[pod.HashAnnotation] = string(uid)
	p.Annotations[pod.SourceAnnotation] = "file"
	tolerateAll(p)
	if err := prepare(p); err != nil {
		return nil, err
	}
	p.Status = v1.PodStatus{Phase: v1.PodPending}
	return p, nil
}

// codec refuses fields that a Pod does not have.
var codec = serializer.NewSerializerWithOptions(serializer.DefaultMetaFactory, scheme.Scheme, scheme.Scheme, serializer.SerializerOptions{Yaml: true, Strict: true})

func decode(manifest []byte) (*v1.Pod, error) {
	docs := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(manifest)))
	var found []byte
	for {
		doc, err := docs.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if len(stripComments(doc)) == 0 {
			continue
		}
		if found != nil {
			return nil, errors.New("more than one document: put each Pod into a manifest of its own")
		}
		found = doc
	}
	if found == nil {
		return nil, errors.New("there is nothing in it")
	}
	obj, kind, err := codec.Decode(found, nil, nil)
	if err != nil {
		return nil, err
	}
	p, ok := obj.(*v1.Pod)
	if !ok {
		return nil, fmt.Errorf("apiVersion %s, kind %s: want v1 and Pod", kind.GroupVersion(), kind.Kind)
	}
	p.TypeMeta = metav1.TypeMeta{}
	return p, nil
}

// stripComments drops separators and lines that are comments, to see whether
// there is anything else.
func stripComments(doc []byte) []byte {
	var out []byte
	for line := range bytes.Lines(doc) {
		if t := bytes.TrimSpace(line); len(t) > 0 && t[0] != '#' && !bytes.Equal(t, []byte("---")) {
			out = append(out, line...)
		}
	}
	return out
}

// hash is the pod's UID.
func hash(p *v1.Pod, node string) (types.UID, error) {
	b, err := json.Marshal(p)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(append(b, "\nnode "+node...))
	return types.UID(hex.EncodeToString(sum[:16])), nil
}

// tolerateAll keeps the pod through whatever the node is short of.
func tolerateAll(p *v1.Pod) {
	all := v1.Toleration{Operator: v1.TolerationOpExists, Effect: v1.TaintEffectNoExecute}
	for _, t := range p.Spec.Tolerations {
		if t.MatchToleration(&all) {
			return
		}
	}
	p.Spec.Tolerations = append(p.Spec.Tolerations, all)
}
