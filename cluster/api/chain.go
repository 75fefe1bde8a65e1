package api

import (
	"net/http"

	"k8s.io/apimachinery/pkg/util/sets"
	genericapifilters "k8s.io/apiserver/pkg/endpoints/filters"
	"k8s.io/apiserver/pkg/endpoints/filters/impersonation"
	apirequest "k8s.io/apiserver/pkg/endpoints/request"
	genericfeatures "k8s.io/apiserver/pkg/features"
	genericapiserver "k8s.io/apiserver/pkg/server"
	genericfilters "k8s.io/apiserver/pkg/server/filters"
)

// longRunning tells the requests that have no deadline and do not count
// against the limit on concurrent requests.
func longRunning() apirequest.LongRunningRequestCheck {
	return genericfilters.BasicLongRunningRequestCheck(
		sets.NewString("watch", "proxy"),
		sets.NewString("attach", "exec", "proxy", "log", "portforward"))
}

// chain is the library's handler chain without audit, tracing, priority and
// fairness, CORS and per-filter latency metrics. There is no timeout filter
// either: every handler's context has a deadline, and nothing behind it blocks
// on anything else. complete is closed when all paths are known; before that an
// unknown path is answered with 503 instead of 404.
func chain(complete <-chan struct{}) func(http.Handler, *genericapiserver.Config) http.Handler {
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
		h = genericapifilters.WithWarningRecorder(h)
		h = genericapifilters.WithRequestDeadline(h, nil, nil, c.LongRunningFunc, c.Serializer, c.RequestTimeout)
		h = genericfilters.WithWaitGroup(h, c.LongRunningFunc, c.NonLongRunningRequestWaitGroup)
		h = genericapifilters.WithCacheControl(h)
		h = genericapifilters.WithRequestInfo(h, c.RequestInfoResolver)
		h = genericapifilters.WithRequestReceivedTimestamp(h)
		h = genericapifilters.WithMuxAndDiscoveryComplete(h, complete)
		h = genericfilters.WithPanicRecovery(h, c.RequestInfoResolver)
		return genericapifilters.WithAuditInit(h)
	}
}
