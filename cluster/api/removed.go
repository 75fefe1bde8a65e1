package api

import (
	"context"
	"net/http"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	apirequest "k8s.io/apiserver/pkg/endpoints/request"

	"github.com/skiff-sh/skiff/cluster/servers"
)

// healthPaths tell of the process, whatever becomes of the cluster.
var healthPaths = []string{"/livez", "/readyz", "/healthz", "/version", "/metrics"}

// withMembership refuses other hosts when member has ended: what they would read
// is old, what they would watch stays silent, and what they write is lost. This
// host's own parts, which come without TLS, get as far as the store goes.
func withMembership(h http.Handler, member context.Context, still []string, long apirequest.LongRunningRequestCheck, s runtime.NegotiatedSerializer) http.Handler {
	if member == nil {
		return h
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS == nil || isHealth(r.URL.Path) {
			h.ServeHTTP(w, r)
			return
		}
		info, _ := apirequest.RequestInfoFrom(r.Context())
		if member.Err() != nil {
			// It sends clients that know other servers to them.
			w.Header().Set(servers.RemovedHeader, "true")
			if slices.Contains(still, r.URL.Path) {
				h.ServeHTTP(w, r)
				return
			}
			refuseRemoved(w, r, context.Cause(member), info, s)
			return
		}
		if info != nil && long(r, info) {
			ctx, cancel := context.WithCancel(r.Context())
			defer cancel()
			defer context.AfterFunc(member, cancel)()
			r = r.WithContext(ctx)
		}
		h.ServeHTTP(w, r)
	})
}

func isHealth(path string) bool {
	return slices.ContainsFunc(healthPaths, func(p string) bool { return path == p || strings.HasPrefix(path, p+"/") })
}

// refuseRemoved answers at once: there is no Retry-After, because this server
// will not serve again.
func refuseRemoved(w http.ResponseWriter, r *http.Request, why error, info *apirequest.RequestInfo, s runtime.NegotiatedSerializer) {
	var group schema.GroupVersion
	if info != nil {
		group = schema.GroupVersion{Group: info.APIGroup, Version: info.APIVersion}
	}
	responsewriters.ErrorNegotiated(&apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusServiceUnavailable, Reason: metav1.StatusReasonServiceUnavailable, Message: why.Error(),
	}}, s, group, w, r)
}
