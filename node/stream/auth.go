package stream

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/cache"
	"k8s.io/client-go/kubernetes"
)

const (
	callerName  = "skiff:apiserver"
	callerGroup = "system:masters"

	// How long answers of the API server are believed: kubelet's defaults.
	tokenFor   = 2 * time.Minute
	allowedFor = 5 * time.Minute
	deniedFor  = 30 * time.Second
	// reviewTimeout bounds one question to the API server.
	reviewTimeout = 10 * time.Second
	// reviewsAtOnce bounds what strangers can have the node ask.
	reviewsAtOnce = 16
	// maxReviews bounds the answers that are remembered.
	maxReviews = 1024
)

// gate decides who may use the node's API. The API server and administrators
// come with a certificate and may do all. Everybody else, by certificate or
// bearer token, may do what the cluster's rules allow for nodes/metrics,
// nodes/stats, nodes/pods, nodes/healthz, nodes/log or nodes/proxy: the API
// server is asked.
type gate struct {
	node   string
	client kubernetes.Interface // nil: nobody else
	users  *cache.LRUExpireCache
	access *cache.LRUExpireCache
	asking chan struct{} // a token for each question under way
}

func newGate(node string, client kubernetes.Interface) *gate {
	return &gate{node: node, client: client, users: cache.NewLRUExpireCache(maxReviews), access: cache.NewLRUExpireCache(maxReviews), asking: make(chan struct{}, reviewsAtOnce)}
}

// refusal is an answer to somebody who may not.
type refusal struct {
	code int
	text string
}

var unauthorized = &refusal{http.StatusUnauthorized, "Unauthorized"}

// admit returns nil for a request that may go on.
func (g *gate) admit(r *http.Request) *refusal {
	who, trusted, err := g.identify(r)
	if err != nil {
		return err
	}
	if trusted {
		return nil
	}
	verb, subresources := attributes(r)
	for _, sub := range subresources {
		ok, err := g.allowed(r.Context(), who, verb, sub)
		if err != nil {
			return &refusal{http.StatusServiceUnavailable, fmt.Sprintf("the API server cannot be asked who may do this: %v", err)}
		}
		if ok {
			return nil
		}
	}
	return &refusal{http.StatusForbidden, fmt.Sprintf("Forbidden (user=%s, verb=%s, resource=nodes, subresource(s)=%v)", who.Username, verb, subresources)}
}

// identify says who asks; trusted callers need no permission.
func (g *gate) identify(r *http.Request) (who authenticationv1.UserInfo, trusted bool, _ *refusal) {
	if t := r.TLS; t != nil && len(t.VerifiedChains) > 0 && len(t.PeerCertificates) > 0 {
		s := t.PeerCertificates[0].Subject
		if s.CommonName == callerName || slices.Contains(s.Organization, callerGroup) {
			return who, true, nil
		}
		if g.client == nil || s.CommonName == "" {
			return who, false, unauthorized
		}
		return authenticationv1.UserInfo{Username: s.CommonName, Groups: append(slices.Clone(s.Organization), "system:authenticated")}, false, nil
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if token = strings.TrimSpace(token); g.client == nil || !strings.EqualFold(scheme, "bearer") || token == "" {
		return who, false, unauthorized
	}
	key := sha256.Sum256([]byte(token))
	if found, ok := g.users.Get(key); ok {
		who, ok := found.(authenticationv1.UserInfo)
		if !ok {
			return who, false, unauthorized
		}
		return who, false, nil
	}
	ctx, done, err := g.ask(r.Context())
	if err != nil {
		return who, false, &refusal{http.StatusTooManyRequests, err.Error()}
	}
	defer done()
	review, err := g.client.AuthenticationV1().TokenReviews().Create(ctx,
		&authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}}, metav1.CreateOptions{})
	if err != nil {
		return who, false, &refusal{http.StatusServiceUnavailable, fmt.Sprintf("the API server cannot be asked whose token this is: %v", err)}
	}
	if !review.Status.Authenticated {
		g.users.Add(key, nil, deniedFor)
		return who, false, unauthorized
	}
	g.users.Add(key, review.Status.User, tokenFor)
	return review.Status.User, false, nil
}

// ask waits for its turn to ask the API server, and gives it a deadline.
func (g *gate) ask(ctx context.Context) (context.Context, func(), error) {
	ctx, cancel := context.WithTimeout(ctx, reviewTimeout)
	select {
	case g.asking <- struct{}{}:
		return ctx, func() { <-g.asking; cancel() }, nil
	case <-ctx.Done():
		cancel()
		return nil, nil, errors.New("too many callers that the node does not know")
	}
}

func (g *gate) allowed(ctx context.Context, who authenticationv1.UserInfo, verb, subresource string) (bool, error) {
	key := fmt.Sprintf("%q %q %q %q %q", who.Username, who.Groups, who.Extra, verb, subresource)
	if found, ok := g.access.Get(key); ok {
		return found.(bool), nil
	}
	ctx, done, err := g.ask(ctx)
	if err != nil {
		return false, err
	}
	defer done()
	review, err := g.client.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: who.Username, UID: who.UID, Groups: who.Groups, Extra: extra(who.Extra),
		ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: verb, Version: "v1", Resource: "nodes", Subresource: subresource, Name: g.node},
	}}, metav1.CreateOptions{})
	if err != nil {
		return false, err
	}
	ttl := deniedFor
	if review.Status.Allowed {
		ttl = allowedFor
	}
	g.access.Add(key, review.Status.Allowed, ttl)
	return review.Status.Allowed, nil
}

func extra(in map[string]authenticationv1.ExtraValue) map[string]authorizationv1.ExtraValue {
	out := make(map[string]authorizationv1.ExtraValue, len(in))
	for k, v := range in {
		out[k] = authorizationv1.ExtraValue(v)
	}
	return out
}

// running are the paths that run something or reach into a pod. Whatever their
// method is, they need the permission to create: one to read is given to
// whoever collects metrics.
var running = []string{"/exec", "/attach", "/portForward"}

// attributes is what a request is in the cluster's rules: any of the subresources
// suffices. They are kubelet's.
func attributes(r *http.Request) (verb string, subresources []string) {
	verb = map[string]string{"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[r.Method]
	if verb == "" {
		verb = "get"
	}
	under := func(root string) bool { return r.URL.Path == root || strings.HasPrefix(r.URL.Path, root+"/") }
	switch {
	case slices.ContainsFunc(running, under):
		return "create", []string{"proxy"}
	case under("/metrics"):
		return verb, []string{"metrics"}
	case under("/stats"):
		return verb, []string{"stats"}
	case under("/logs"):
		return verb, []string{"log"}
	case under("/pods"), under("/runningpods"):
		return verb, []string{"pods", "proxy"}
	case under("/healthz"):
		return verb, []string{"healthz", "proxy"}
	case under("/configz"):
		return verb, []string{"configz", "proxy"}
	}
	return verb, []string{"proxy"}
}
