package runtime

import (
	"reflect"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestHugePageLimits(t *testing.T) {
	got := hugePageLimits([]int64{64 << 10, 2 << 20, 1 << 30}, map[int64]int64{2 << 20: 64 << 20})
	want := []specs.LinuxHugepageLimit{{Pagesize: "64KB"}, {Pagesize: "2MB", Limit: 64 << 20}, {Pagesize: "1GB"}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
