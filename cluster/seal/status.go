package seal

import (
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/skiff-sh/skiff/fsm/store"
)

// Paths on the API port.
const (
	StatusPath = "/skiff/v1/encryption"
	RotatePath = "/skiff/v1/encryption/rotate"
)

// Status is what `skiff encryption status` shows.
type Status struct {
	// ClusterKey is the ID of the cluster key on the server that answers.
	ClusterKey string `json:"clusterKey"`
	// Passphrase: the key's file on that server is sealed with one.
	Passphrase bool      `json:"passphrase"`
	DataKeys   []DataKey `json:"dataKeys"`
	// Plain values are not sealed yet.
	Plain int `json:"plain"`
	// Rotating: there is more than one data key.
	Rotating bool `json:"rotating"`
	// Problem says why secrets can't be read here.
	Problem string `json:"problem,omitempty"`
}

// DataKey is one data key.
type DataKey struct {
	Number  uint64    `json:"number"`
	Created time.Time `json:"created"`
	Values  int       `json:"values"` // that are sealed with it
	Newest  bool      `json:"newest"`
}

// Status looks at every sealed value of the local state.
func (s *Sealer) Status() Status {
	out := Status{ClusterKey: s.cfg.Key.ID(), Passphrase: s.cfg.Key.Sealed() != nil, DataKeys: []DataKey{}}
	view := s.cfg.Store.View()
	counts := map[uint64]int{}
	for _, prefix := range s.cfg.Prefixes {
		view.Ascend(prefix, "", func(kv *store.KeyValue) bool {
			n, _ := Number(kv.Value)
			counts[n]++
			return true
		})
	}
	out.Plain = counts[0]
	numbers := s.numbers(view)
	for i, n := range numbers {
		k := DataKey{Number: n, Values: counts[n], Newest: i == len(numbers)-1}
		if d, err := s.find(n); err != nil {
			out.Problem = err.Error()
		} else {
			k.Created = d.created
		}
		out.DataKeys = append(out.DataKeys, k)
	}
	out.Rotating = len(numbers) > 1
	return out
}

// Handlers serve Status and Rotate, for administrators.
func (s *Sealer) Handlers() map[string]http.Handler {
	return map[string]http.Handler{
		StatusPath: method(http.MethodGet, func(w http.ResponseWriter, _ *http.Request) { answer(w, s.Status()) }),
		RotatePath: method(http.MethodPost, func(w http.ResponseWriter, r *http.Request) {
			switch err := s.Rotate(r.Context()); {
			case errors.Is(err, ErrRotating):
				http.Error(w, err.Error(), http.StatusConflict)
			case err != nil:
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
			default:
				answer(w, s.Status())
			}
		}),
	}
}

func method(want string, h http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != want {
			w.Header().Set("Allow", want)
			http.Error(w, "only "+want+" is allowed", http.StatusMethodNotAllowed)
			return
		}
		h(w, r)
	})
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the client has gone
}
