package nodehealth

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"

	genericrequest "k8s.io/apiserver/pkg/endpoints/request"

	"github.com/skiff-sh/skiff/cluster/auth"
)

// LeasePath is where a node renews its lease, by PUT, on any server.
const LeasePath = "/skiff/v1/lease"

// Handler serves LeasePath: it grants a lease to the node that asks, which is the
// one that its certificate names. call runs a method on the leader.
func Handler(call func(ctx context.Context, method string, body []byte) ([]byte, error), log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPut {
			w.Header().Set("Allow", http.MethodPut)
			http.Error(w, "only PUT is allowed", http.StatusMethodNotAllowed)
			return
		}
		user, ok := genericrequest.UserFrom(r.Context())
		if !ok {
			http.Error(w, "who asks is not known", http.StatusUnauthorized)
			return
		}
		node, ok := auth.NodeName(user)
		if !ok {
			http.Error(w, "only a node can hold a lease: "+user.GetName()+" is none", http.StatusForbidden)
			return
		}
		body, err := json.Marshal(request{Node: node})
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		answer, err := call(r.Context(), LeaseMethod, body)
		if err != nil {
			log.Debug("no lease", "node", node, "error", err)
			w.Header().Set("Retry-After", "1")
			http.Error(w, "no lease can be granted now: "+err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		if _, err := w.Write(answer); err != nil {
			log.Debug("answer a request for a lease", "node", node, "error", err)
		}
	})
}
