package membership

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"time"
)

const (
	checkInterval = time.Minute // how often Run looks at the clock and the address
	renewRetry    = 2 * time.Second
	renewRetryMax = 30 * time.Second
	askTimeout    = 15 * time.Second
)

// serversURL is never resolved: Dial chooses the server.
const serversURL = "https://servers.skiff"

// client talks to whichever server Dial reaches.
func (i *Identity) client() *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: i.c.Dial, TLSClientConfig: i.ClientTLS(), DisableKeepAlives: true, TLSHandshakeTimeout: dialTimeout}}
}

// Refresh makes Run ask a server for the node configuration soon: the trust or
// the servers have changed, or the API refuses the node.
func (i *Identity) Refresh() {
	select {
	case i.wake <- struct{}{}:
	default:
	}
}

// Run keeps the certificate valid, and asks for the node configuration at the
// start and after Refresh, until ctx ends. It returns a *Refusal when the node
// was removed from the cluster; what the node runs is not touched by that.
func (i *Identity) Run(ctx context.Context) error {
	if !i.Joined() || i.c.Dial == nil {
		return errors.New("identity: the node has not joined, or Dial is missing")
	}
	ask, pause := true, time.Duration(0)
	said := "" // is not said again
	for {
		err := i.step(ctx, ask)
		var refused *Refusal
		wait, wake := checkInterval, i.wake
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.As(err, &refused) && refused.Removed:
			return refused
		case err != nil:
			pause = min(max(2*pause, renewRetry), renewRetryMax)
			wait, wake = pause, nil // who pokes gets its turn then
			if text := err.Error(); text != said {
				said = text
				i.c.Logger.Warn("certificate and settings of this node could not be brought up to date, will try again", "error", err)
			}
		default:
			ask, pause, said = false, 0, ""
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-t.C:
		case <-wake:
			ask = true
		}
		t.Stop()
	}
}

// step renews the certificate if it is time, and asks for the configuration.
func (i *Identity) step(ctx context.Context, ask bool) error {
	if why := i.due(); why != "" {
		if err := i.Renew(ctx, why); err != nil {
			return err
		}
	}
	if !ask {
		return nil
	}
	c, err := i.NodeConfig(ctx)
	if err != nil {
		return err
	}
	if c.Renew {
		if err := i.Renew(ctx, "the cluster asks for it"); err != nil {
			return err
		}
	}
	if i.c.OnConfig != nil {
		i.c.OnConfig(c)
	}
	return nil
}

// due says why the certificate is to be replaced now, "" if it is not.
func (i *Identity) due() string {
	c, now := i.Leaf(), i.c.Now()
	switch life := c.NotAfter.Sub(c.NotBefore); {
	case now.After(c.NotAfter):
		return "it has expired"
	case !now.Before(c.NotBefore.Add(life * 2 / 3)):
		return "two thirds of its life are over"
	}
	a := net.ParseIP(i.c.Address())
	if a != nil && !slices.ContainsFunc(c.IPAddresses, a.Equal) {
		return "the address of this node has changed"
	}
	return ""
}

// Renew replaces key and certificate. why is for the log.
func (i *Identity) Renew(ctx context.Context, why string) error {
	i.busy.Lock()
	defer i.busy.Unlock()
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	next, err := newKey()
	if err != nil {
		return err
	}
	if err := i.writeKey(newKeyFile, next); err != nil {
		return err
	}
	r, old, err := i.renewRequest(next)
	if err != nil {
		return err
	}
	a, err := call[RenewAnswer](ctx, i.client(), http.MethodPost, serversURL+RenewPath, r, nil)
	if err != nil {
		return fmt.Errorf("renew the certificate of this node: %w", err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if err := i.install(a.Cert, a.CA, next); err != nil {
		return fmt.Errorf("renew the certificate of this node: %w", err)
	}
	i.c.Logger.Info("the certificate of this node was renewed", "because", why, "expired", old.NotAfter.UTC().Format(time.RFC3339), "expires", i.cert.Leaf.NotAfter.UTC().Format(time.RFC3339))
	return nil
}

func (i *Identity) renewRequest(next *ecdsa.PrivateKey) (r RenewRequest, old *x509.Certificate, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.cert == nil {
		return r, nil, errors.New("this node has not joined yet")
	}
	r = RenewRequest{Time: i.c.Now().UTC(), Address: i.c.Address(), Old: i.pem}
	if r.CSR, err = csrFor(i.c.Name, next); err != nil {
		return r, nil, err
	}
	return r, i.cert.Leaf, signRenewal(&r, i.key)
}

// NodeConfig asks a server what the cluster is like now, and trusts the CA
// certificates that it names.
func (i *Identity) NodeConfig(ctx context.Context) (*NodeConfig, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	i.mu.Lock()
	generation := generationOf(i.pem)
	i.mu.Unlock()
	c, err := call[NodeConfig](ctx, i.client(), http.MethodGet, fmt.Sprintf("%s%s?generation=%d%s", serversURL, NodeConfigPath, generation, i.c.Program.query()), nil, nil)
	if err != nil {
		return nil, fmt.Errorf("settings of this node: %w", err)
	}
	return c, i.SetCA(c.CA)
}

// Leave ends the membership of this node.
func (i *Identity) Leave(ctx context.Context) (*Removed, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*askTimeout)
	defer cancel()
	r, err := call[Removed](ctx, i.client(), http.MethodPost, serversURL+LeavePath, nil, nil)
	var refused *Refusal
	if errors.As(err, &refused) && refused.Status == http.StatusUnauthorized {
		if _, why := i.NodeConfig(ctx); why != nil {
			return nil, why // the API itself does not say
		}
	}
	return r, err
}
