package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	authv1 "k8s.io/api/authentication/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// TokenSource issues service account tokens.
type TokenSource interface {
	Token(ctx context.Context, namespace, serviceAccount string, req *authv1.TokenRequest) (*authv1.TokenRequest, error)
}

// APITokens asks the API server's TokenRequest subresource.
type APITokens struct{ Client kubernetes.Interface }

// Token implements TokenSource.
func (t APITokens) Token(ctx context.Context, namespace, sa string, req *authv1.TokenRequest) (*authv1.TokenRequest, error) {
	return t.Client.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, sa, req, metav1.CreateOptions{})
}

type token struct {
	uid     string
	value   []byte
	refresh time.Time
	expires time.Time
}

// token puts a token file: the one it has until four fifths of its life (or
// 24 hours) are over, then a new one. While the API does not answer, the old
// one serves as long as it is valid.
func (c *collector) token(p *v1.ServiceAccountTokenProjection) error {
	sa := c.pod.Spec.ServiceAccountName
	if sa == "" {
		sa = "default"
	}
	key := filepath.Join(string(c.pod.UID), c.volume, p.Path)
	c.m.mu.Lock()
	t := c.m.tokens[key]
	c.m.mu.Unlock()
	now := time.Now()
	if t == nil || now.After(t.refresh) {
		fresh, err := c.request(sa, p, now)
		switch {
		case err == nil:
			t = fresh
			c.m.mu.Lock()
			c.m.tokens[key] = t
			c.m.mu.Unlock()
		case t == nil:
			// Adopted after a restart: the file may hold a token still.
			if b, rerr := os.ReadFile(filepath.Join(c.m.cfg.MemRoot, key)); rerr == nil && len(b) > 0 {
				c.m.cfg.Logger.Warn("keeping a pod's token, no new one to be had", "pod", c.pod.Namespace+"/"+c.pod.Name, "err", err)
				t = &token{uid: string(c.pod.UID), value: b, refresh: now.Add(10 * time.Second)}
				break
			}
			return fmt.Errorf("failed to fetch token: %w", err)
		case now.After(t.expires):
			return fmt.Errorf("token expired and refresh failed: %w", err)
		default:
			c.m.cfg.Logger.Warn("renewing a pod's token failed, trying again soon", "pod", c.pod.Namespace+"/"+c.pod.Name, "err", err)
			t = &token{uid: t.uid, value: t.value, refresh: now.Add(30 * time.Second), expires: t.expires}
		}
	}
	if c.refresh.IsZero() || t.refresh.Before(c.refresh) {
		c.refresh = t.refresh
	}
	f := file{data: t.value, mode: c.mode}
	switch {
	case c.group != nil:
		f.mode = 0o600
	default:
		if uid, ok := onlyUser(c.pod); ok {
			f.mode, f.uid = 0o600, int(uid)
		}
	}
	c.files[filepath.Clean(p.Path)] = f
	return nil
}

func (c *collector) request(sa string, p *v1.ServiceAccountTokenProjection, now time.Time) (*token, error) {
	req := &authv1.TokenRequest{Spec: authv1.TokenRequestSpec{
		ExpirationSeconds: p.ExpirationSeconds,
		BoundObjectRef:    &authv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: c.pod.Name, UID: c.pod.UID},
	}}
	if p.Audience != "" {
		req.Spec.Audiences = []string{p.Audience}
	}
	if c.m.cfg.Tokens == nil {
		return nil, errors.New("no source of tokens")
	}
	out, err := c.m.cfg.Tokens.Token(c.ctx, c.pod.Namespace, sa, req)
	if err != nil {
		return nil, err
	}
	life := out.Status.ExpirationTimestamp.Sub(now)
	if life <= 0 {
		return nil, fmt.Errorf("the token has expired already, at %s: is the clock right?", out.Status.ExpirationTimestamp)
	}
	return &token{uid: string(c.pod.UID), value: []byte(out.Status.Token),
		refresh: now.Add(min(life*4/5, 24*time.Hour)), expires: out.Status.ExpirationTimestamp.Time}, nil
}

// onlyUser returns the user that all containers run as, when the pod says so.
func onlyUser(pod *v1.Pod) (int64, bool) {
	var all *int64
	var base *int64
	if sc := pod.Spec.SecurityContext; sc != nil {
		base = sc.RunAsUser
	}
	same := true
	look := func(c *v1.Container) {
		u := base
		if c.SecurityContext != nil && c.SecurityContext.RunAsUser != nil {
			u = c.SecurityContext.RunAsUser
		}
		switch {
		case u == nil:
			same = false
		case all == nil:
			all = u
		case *all != *u:
			same = false
		}
	}
	for i := range pod.Spec.InitContainers {
		look(&pod.Spec.InitContainers[i])
	}
	for i := range pod.Spec.Containers {
		look(&pod.Spec.Containers[i])
	}
	if !same || all == nil {
		return 0, false
	}
	return *all, true
}
