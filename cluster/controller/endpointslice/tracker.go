package endpointslice

import (
	"sync"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
)

// trackerPatience bounds how long a lost event can hold up a Service.
const trackerPatience = 5 * time.Second

// tracker remembers what was written and has not come back by the informer yet.
// A plan made on a cache without it would write the same slices twice.
type tracker struct {
	mu   sync.Mutex
	open map[string]map[types.UID]mark // by Service
	now  func() time.Time
}

type mark struct {
	version string // at least this one must be cached; "" if it must be gone
	at      time.Time
}

func newTracker() *tracker {
	return &tracker{open: map[string]map[types.UID]mark{}, now: time.Now}
}

func (t *tracker) wrote(key string, s *discoveryv1.EndpointSlice) {
	t.set(key, s.UID, s.ResourceVersion)
}

func (t *tracker) removed(key string, s *discoveryv1.EndpointSlice) { t.set(key, s.UID, "") }

func (t *tracker) set(key string, uid types.UID, version string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open[key] == nil {
		t.open[key] = map[types.UID]mark{}
	}
	t.open[key][uid] = mark{version, t.now()}
}

// seen reports whether cached, the slices of a Service, shows all that was
// written for it.
func (t *tracker) seen(key string, cached []*discoveryv1.EndpointSlice) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	versions := map[types.UID]string{}
	for _, s := range cached {
		versions[s.UID] = s.ResourceVersion
	}
	for uid, m := range t.open[key] {
		have, ok := versions[uid]
		switch {
		case m.version == "" && !ok,
			m.version != "" && ok && atLeast(have, m.version),
			t.now().Sub(m.at) >= trackerPatience:
			delete(t.open[key], uid)
		default:
			return false
		}
	}
	delete(t.open, key)
	return true
}

func (t *tracker) forget(key string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.open, key)
}

func atLeast(have, want string) bool {
	n, err := resourceversion.CompareResourceVersion(have, want)
	return err != nil || n >= 0
}
