package runtime

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// LimitsHugePages says whether Resources.HugePages can be honoured.
func (r *Runtime) LimitsHugePages() bool { return r.cgroups.has("hugetlb") }

// pageSizes are the sizes of huge pages that the kernel knows, in bytes.
var pageSizes = sync.OnceValue(func() (sizes []int64) {
	dirs, err := os.ReadDir("/sys/kernel/mm/hugepages")
	if err != nil {
		return nil // it has none
	}
	for _, d := range dirs {
		name := strings.TrimSuffix(strings.TrimPrefix(d.Name(), "hugepages-"), "kB")
		if kib, err := strconv.ParseInt(name, 10, 64); err == nil {
			sizes = append(sizes, kib<<10)
		}
	}
	slices.Sort(sizes)
	return sizes
})

// hugePageLimits limits every size: who asked for none gets none.
func hugePageLimits(sizes []int64, asked map[int64]int64) (out []specs.LinuxHugepageLimit) {
	for _, size := range sizes {
		out = append(out, specs.LinuxHugepageLimit{Pagesize: pageName(size), Limit: uint64(asked[size])})
	}
	return out
}

// pageName is how the kernel's hugetlb controller writes a size.
func pageName(size int64) string {
	units := []string{"B", "KB", "MB", "GB"}
	i := 0
	for size >= 1024 && size%1024 == 0 && i < len(units)-1 {
		size /= 1024
		i++
	}
	return strconv.FormatInt(size, 10) + units[i]
}
