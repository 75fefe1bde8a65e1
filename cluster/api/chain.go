package api

import (
	"net/http"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/sets"
	genericapifilters "k8s.io/apiserver/pkg/endpoints/filters"
	"k8s.io/apiserver/pkg/endpoints/filters/impersonation"
	apirequest "k8s.io/apiserver/pkg/endpoints/request"
	genericfeatures "k8s.io/apiserver/pkg/features"
	genericapiserver "k8s.io/apiserver/pkg/server"
	genericfilters "k8s.io/apiserver/pkg/server/filters"
)

// longRunning tells the requests that have no deadline and do not count
// against the limit on concurrent requests. Those of paths take as long as the
// whole state takes over the client's network.
func longRunning(paths ...string) apirequest.LongRunningRequestCheck {
	basic := genericfilters.BasicLongRunningRequestCheck(
		sets.NewString("watch", "proxy"),
		sets.NewString("attach", "exec", "proxy", "log", "portforward"))
	return func(r *http.Request, info *apirequest.RequestInfo) bool {
		return basic(r, info) || !info.IsResourceRequest && slices.ContainsFunc(paths, func(p string) bool {
			return p == info.Path || strings.HasSuffix(p, "/") && strings.HasPrefix(info.Path, p)
		})
	}
}

// chain is the library's handler chain without audit, tracing, priority and
// fairness, CORS and per-filter latency metrics. There is no timeout filter
// either: every handler's context has a deadline, and nothing behind it blocks
// on anything else. complete is closed when all paths are known; before that an
// unknown path is answered with 503 instead of 404. What is open is served
// before authentication.
func chain(complete <-chan struct{}, cfg Config) func(http.Handler, *genericapiserver.Config) http.Handler {
	return func(h http.Handler, c *genericapiserver.Config) http.Handler {
		h = genericapifilters.WithAuthorization(h, c.Authorization.Authorizer, c.Serializer)
		h = genericfilters.WithMaxInFlightLimit(h, c.MaxRequestsInFlight, c.MaxMutatingRequestsInFlight, c.LongRunningFunc)
		if c.FeatureGate.Enabled(genericfeatures.ConstrainedImpersonation) {
			h = impersonation.WithConstrainedImpersonation(h, c.Authorization.Authorizer, c.Serializer)
		} else {
			h = impersonation.WithImpersonation(h, c.Authorization.Authorizer, c.Serializer)
		}
		failed := genericapifilters.Unauthorized(c.Serializer)
		h = genericapifilters.WithAuthentication(h, c.Authentication.Authenticator, failed, c.Authentication.APIAudiences, nil)
		h = withOpen(h, cfg.OpenHandlers)
		h = genericapifilters.WithWarningRecorder(h)
		h = genericapifilters.WithRequestDeadline(h, nil, nil, c.LongRunningFunc, c.Serializer, c.RequestTimeout)
		h = genericfilters.WithWaitGroup(h, c.LongRunningFunc, c.NonLongRunningRequestWaitGroup)
		h = genericapifilters.WithCacheControl(h)
		h = withMembership(h, cfg.Membership, cfg.StillServed, c.LongRunningFunc, c.Serializer)
		h = genericapifilters.WithRequestInfo(h, c.RequestInfoResolver)
		h = genericapifilters.WithRequestReceivedTimestamp(h)
		h = genericapifilters.WithMuxAndDiscoveryComplete(h, complete)
		h = genericfilters.WithPanicRecovery(h, c.RequestInfoResolver)
		return genericapifilters.WithAuditInit(h)
	}
}

const (
	maxOpen          = 32 // requests of OpenHandlers at a time
	maxOpenBodyBytes = 64 << 10
)

// withOpen serves the paths in open itself and passes on all others.
func withOpen(h http.Handler, open map[string]http.Handler) http.Handler {
	if len(open) == 0 {
		return h
	}
	slots := make(chan struct{}, maxOpen)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handler, ok := open[r.URL.Path]
		if !ok {
			h.ServeHTTP(w, r)
			return
		}
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		default:
			w.Header().Set("Retry-After", "1")
			http.Error(w, "too many requests at a time, try again", http.StatusTooManyRequests)
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxOpenBodyBytes)
		handler.ServeHTTP(w, r)
	})
}
