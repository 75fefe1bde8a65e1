package auth

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/utils/ptr"
)

// fakeObjects is Objects on maps; the keys are namespace/name.
type fakeObjects struct {
	accounts map[string]*corev1.ServiceAccount
	pods     map[string]*corev1.Pod
	nodes    map[string]*corev1.Node
	volumes  map[string]*corev1.PersistentVolume
}

func found[T any](m map[string]T, key string) (T, error) {
	if v, ok := m[key]; ok {
		return v, nil
	}
	var zero T
	return zero, apierrors.NewNotFound(schema.GroupResource{Resource: "x"}, key)
}

func (f *fakeObjects) ServiceAccount(_ context.Context, ns, name string) (*corev1.ServiceAccount, error) {
	return found(f.accounts, ns+"/"+name)
}
func (f *fakeObjects) Pod(_ context.Context, ns, name string) (*corev1.Pod, error) {
	return found(f.pods, ns+"/"+name)
}
func (f *fakeObjects) Secret(_ context.Context, ns, name string) (*corev1.Secret, error) {
	return found(map[string]*corev1.Secret{}, ns+"/"+name)
}
func (f *fakeObjects) Node(_ context.Context, name string) (*corev1.Node, error) {
	return found(f.nodes, name)
}
func (f *fakeObjects) Volume(_ context.Context, name string) (*corev1.PersistentVolume, error) {
	return found(f.volumes, name)
}
func (f *fakeObjects) Namespace(_ context.Context, name string) (*corev1.Namespace, error) {
	return found(map[string]*corev1.Namespace{}, name)
}
func (f *fakeObjects) Pods(_ context.Context, ns string) ([]corev1.Pod, error) {
	var out []corev1.Pod
	for _, p := range f.pods {
		if ns == "" || p.Namespace == ns {
			out = append(out, *p)
		}
	}
	return out, nil
}

func testTokens(t *testing.T) (*Tokens, *fakeObjects) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	objects := &fakeObjects{
		accounts: map[string]*corev1.ServiceAccount{"ns/app": {ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "app", UID: "sa-uid"}}},
		pods: map[string]*corev1.Pod{"ns/web": {ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", UID: "pod-uid"},
			Spec: corev1.PodSpec{ServiceAccountName: "app", NodeName: "n1"}}},
		nodes: map[string]*corev1.Node{"n1": {ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "node-uid"}}},
	}
	tokens, err := NewTokens(key, "https://issuer", []string{"https://issuer", "skiff"}, objects)
	if err != nil {
		t.Fatal(err)
	}
	return tokens, objects
}

func requestToken(t *testing.T, tokens *Tokens, spec authenticationv1.TokenRequestSpec) (string, error) {
	t.Helper()
	ctx := request.WithNamespace(context.Background(), "ns")
	obj, err := tokens.TokenRequest().Create(ctx, "app", &authenticationv1.TokenRequest{Spec: spec}, nil, &metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	return obj.(*authenticationv1.TokenRequest).Status.Token, nil
}

func TestTokenRoundTrip(t *testing.T) {
	tokens, _ := testTokens(t)
	token, err := requestToken(t, tokens, authenticationv1.TokenRequestSpec{
		BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: "web", UID: "pod-uid"}})
	if err != nil {
		t.Fatal(err)
	}
	resp, ok, err := tokens.AuthenticateToken(context.Background(), token)
	if err != nil || !ok {
		t.Fatalf("AuthenticateToken = %v, %v", ok, err)
	}
	if got := resp.User.GetName(); got != "system:serviceaccount:ns:app" {
		t.Errorf("user %q", got)
	}
	extra := resp.User.GetExtra()
	if got := extra["authentication.kubernetes.io/pod-name"]; len(got) != 1 || got[0] != "web" {
		t.Errorf("pod name %q", got)
	}
	if got := extra["authentication.kubernetes.io/node-uid"]; len(got) != 1 || got[0] != "node-uid" {
		t.Errorf("node uid %q", got)
	}
}

func TestTokenIsRefused(t *testing.T) {
	bound := authenticationv1.TokenRequestSpec{BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: "web"}}
	for _, tc := range []struct {
		name, want string
		spec       authenticationv1.TokenRequestSpec
		spoil      func(tokens *Tokens, o *fakeObjects, token *string)
	}{
		{"expired", "has expired", authenticationv1.TokenRequestSpec{}, func(tk *Tokens, _ *fakeObjects, _ *string) {
			tk.now = func() time.Time { return time.Now().Add(2 * time.Hour) }
		}},
		{"account recreated", "has been invalidated", authenticationv1.TokenRequestSpec{}, func(_ *Tokens, o *fakeObjects, _ *string) {
			o.accounts["ns/app"].UID = "other"
		}},
		{"pod gone", "has been invalidated", bound, func(_ *Tokens, o *fakeObjects, _ *string) { delete(o.pods, "ns/web") }},
		{"pod long dead", "has been invalidated", bound, func(_ *Tokens, o *fakeObjects, _ *string) {
			o.pods["ns/web"].DeletionTimestamp = &metav1.Time{Time: time.Now().Add(-time.Hour)}
		}},
		{"other audience", "audiences", authenticationv1.TokenRequestSpec{Audiences: []string{"vault"}}, nil},
		{"signature changed", "token", authenticationv1.TokenRequestSpec{}, func(_ *Tokens, _ *fakeObjects, token *string) {
			i := strings.LastIndex(*token, ".") + 1
			c := "A"
			if (*token)[i] == 'A' {
				c = "B"
			}
			*token = (*token)[:i] + c + (*token)[i+1:]
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tokens, objects := testTokens(t)
			token, err := requestToken(t, tokens, tc.spec)
			if err != nil {
				t.Fatal(err)
			}
			if tc.spoil != nil {
				tc.spoil(tokens, objects, &token)
			}
			_, ok, err := tokens.AuthenticateToken(context.Background(), token)
			if ok || err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("AuthenticateToken = %v, %v; want %q", ok, err, tc.want)
			}
		})
	}
}

func TestForeignTokensAreLeftToOthers(t *testing.T) {
	tokens, _ := testTokens(t)
	for _, token := range []string{"", "abc", "a.b.c", "e30.e30.e30"} {
		if _, ok, err := tokens.AuthenticateToken(context.Background(), token); ok || err != nil {
			t.Errorf("%q: %v, %v", token, ok, err)
		}
	}
}

func TestTokenRequestIsValidated(t *testing.T) {
	tokens, _ := testTokens(t)
	for _, tc := range []struct {
		name, want string
		spec       authenticationv1.TokenRequestSpec
	}{
		{"too short", "may not specify a duration less than 10 minutes", authenticationv1.TokenRequestSpec{ExpirationSeconds: ptr.To[int64](5)}},
		{"unknown kind", "cannot bind token to object of type v1/Service", authenticationv1.TokenRequestSpec{
			BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Service", Name: "x"}}},
		{"other pod", "does not match the UID", authenticationv1.TokenRequestSpec{
			BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: "web", UID: "old"}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := requestToken(t, tokens, tc.spec); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
}

func TestTokenReviewAnswersForAudience(t *testing.T) {
	tokens, _ := testTokens(t)
	token, err := requestToken(t, tokens, authenticationv1.TokenRequestSpec{Audiences: []string{"vault"}})
	if err != nil {
		t.Fatal(err)
	}
	for audience, want := range map[string]bool{"vault": true, "other": false} {
		r := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: []string{audience}}}
		obj, err := reviewToken(context.Background(), NewAuthenticators(tokens, nil, nil).Token, authenticator.Audiences{"skiff"}, r)
		if err != nil {
			t.Fatal(err)
		}
		if got := obj.(*authenticationv1.TokenReview).Status; got.Authenticated != want {
			t.Errorf("%s: %+v", audience, got)
		} else if want && !slices.Contains(got.User.Groups, "system:authenticated") {
			t.Errorf("groups %v", got.User.Groups)
		}
	}
}

func TestIssuerDiscovery(t *testing.T) {
	tokens, _ := testTokens(t)
	docs, err := tokens.IssuerDiscovery("https://10.0.0.1:6443")
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	docs[ConfigurationPath].ServeHTTP(w, nil)
	var c map[string]any
	if err := json.Unmarshal(w.Body.Bytes(), &c); err != nil || c["issuer"] != "https://issuer" || c["jwks_uri"] != "https://10.0.0.1:6443/openid/v1/jwks" {
		t.Errorf("%s, %v", w.Body, err)
	}
	w = httptest.NewRecorder()
	docs[KeysPath].ServeHTTP(w, nil)
	if strings.Contains(w.Body.String(), `"d":`) || !strings.Contains(w.Body.String(), tokens.keyID) {
		t.Errorf("keys %s", w.Body)
	}
}
