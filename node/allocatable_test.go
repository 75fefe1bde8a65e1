package node

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/skiff-sh/skiff/node/eviction"
)

func list(pairs ...string) v1.ResourceList {
	out := v1.ResourceList{}
	for i := 0; i < len(pairs); i += 2 {
		out[v1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
	}
	return out
}

func TestReserve(t *testing.T) {
	capacity := list("cpu", "4", "memory", "8Gi", "ephemeral-storage", "100Gi", "pods", "110", "hugepages-2Mi", "1Gi")
	thresholds, err := eviction.Parse([]string{"memory.available<100Mi", "nodefs.available<10%"}, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	reserved := list("cpu", "500m", "memory", "1Gi", "pid", "1000")
	got, err := reserve(capacity, reserved, thresholds)
	if err != nil {
		t.Fatal(err)
	}
	want := list("cpu", "3500m", "memory", "6044Mi", "ephemeral-storage", "90Gi", "pods", "110", "hugepages-2Mi", "1Gi")
	for name, q := range want {
		if g := got[name]; g.Cmp(q) != 0 {
			t.Errorf("%s: %s, want %s", name, g.String(), q.String())
		}
	}
	if _, err := reserve(capacity, list("cpu", "5"), nil); err == nil || !strings.Contains(err.Error(), "keep back more cpu, 5, than this machine has, 4") {
		t.Error(err)
	}
	// What eviction needs is not kept from all pods together.
	r := podsLimits(capacity, reserved, 32768)
	if r.CPUShares != 3584 || r.MemoryLimit != 7<<30 || r.PidsLimit != 31768 {
		t.Errorf("%+v", r)
	}
}

func TestHugePages(t *testing.T) {
	root := t.TempDir()
	for name, n := range map[string]string{"hugepages-2048kB": "3\n", "hugepages-1048576kB": "0\n"} {
		if err := os.Mkdir(filepath.Join(root, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name, "nr_hugepages"), []byte(n), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := hugePages(root, true)
	two, one := got["hugepages-2Mi"], got["hugepages-1Gi"]
	if err != nil || len(got) != 2 || two.String() != "6Mi" || !one.IsZero() {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := hugePages(root, false); err != nil || len(got) != 0 {
		t.Errorf("without a limit for containers: %v, %v", got, err)
	}
}
