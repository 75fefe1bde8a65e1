package image

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// Registry says how one registry host is reached.
type Registry struct {
	// Mirrors are tried in order before the registry itself:
	// "https://mirror.example", "http://10.0.0.1:5000/prefix", "host:port".
	Mirrors []string `json:"mirrors,omitempty"`
	// PlainHTTP uses http:// in place of https:// for the registry itself.
	PlainHTTP bool `json:"plainHTTP,omitempty"`
	// InsecureSkipVerify accepts any server certificate (also of https mirrors).
	InsecureSkipVerify bool `json:"insecureSkipVerify,omitempty"`
	// CAFile holds further certificates to trust (also for https mirrors).
	CAFile string `json:"caFile,omitempty"`
}

const dockerHub = "docker.io"

// stallTimeout ends a download that delivers nothing.
const stallTimeout = 60 * time.Second

func (r Registry) check(host string) error {
	for _, m := range r.Mirrors {
		if _, err := parseMirror(m); err != nil {
			return fmt.Errorf("registry %s: mirror %q: %w", host, m, err)
		}
	}
	if _, err := r.transport(nil); err != nil {
		return fmt.Errorf("registry %s: %w", host, err)
	}
	return nil
}

// endpoint is one place to get a repository from.
type endpoint struct {
	host   string
	prefix string // path before the repository
	plain  bool
}

func (e endpoint) String() string {
	scheme := "https://"
	if e.plain {
		scheme = "http://"
	}
	return strings.TrimSuffix(scheme+e.host+"/"+e.prefix, "/")
}

func parseMirror(m string) (endpoint, error) {
	if !strings.Contains(m, "://") {
		m = "https://" + m
	}
	u, err := url.Parse(m)
	if err != nil {
		return endpoint{}, err
	}
	if u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.RawQuery != "" || u.User != nil {
		return endpoint{}, errors.New("want http://host[:port][/path] or https://host[:port][/path]")
	}
	return endpoint{host: u.Host, prefix: strings.Trim(u.Path, "/"), plain: u.Scheme == "http"}, nil
}

// registry is the configuration for a host.
func (s *Store) registry(host string) Registry {
	if r, ok := s.cfg.Registries[host]; ok {
		return r
	}
	return s.cfg.Registries["*"]
}

// endpoints are where a host's repositories are looked for, in order.
func (r Registry) endpoints(host string) []endpoint {
	var out []endpoint
	for _, m := range r.Mirrors {
		if e, err := parseMirror(m); err == nil {
			out = append(out, e)
		}
	}
	own := endpoint{host: host, plain: r.PlainHTTP}
	if host == dockerHub {
		own.host = name.DefaultRegistry
	}
	return append(out, own)
}

// transport makes an HTTP transport. plain lists hosts that may be spoken to
// without TLS; the registry client would otherwise fall back to that for
// whatever looks like a private network.
func (r Registry) transport(plain map[string]bool) (http.RoundTripper, error) {
	t := remote.DefaultTransport.(*http.Transport).Clone()
	t.TLSClientConfig = &tls.Config{InsecureSkipVerify: r.InsecureSkipVerify} //nolint:gosec // asked for by configuration
	t.ResponseHeaderTimeout = stallTimeout
	if r.CAFile != "" {
		pem, err := os.ReadFile(r.CAFile)
		if err != nil {
			return nil, fmt.Errorf("caFile: %w", err)
		}
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("caFile %s holds no certificate", r.CAFile)
		}
		t.TLSClientConfig.RootCAs = pool
	}
	return &tlsOnly{t, plain}, nil
}

type tlsOnly struct {
	next  *http.Transport
	plain map[string]bool
}

func (t *tlsOnly) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme == "http" && !t.plain[req.URL.Host] && !loopback(req.URL.Hostname()) {
		return nil, fmt.Errorf("%s does not speak TLS, and plain HTTP is not allowed for it (plainHTTP: true in the registries' configuration)", req.URL.Host)
	}
	return t.next.RoundTrip(req)
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Pull fetches ref from its registry or mirrors. Layers that exist are not
// fetched again. auth may be nil for anonymous; a mirror gets credentials only
// when auth has some for the mirror's own host.
func (s *Store) Pull(ctx context.Context, ref string, auth authn.Keychain, progress ProgressFunc) (*Image, error) {
	full, err := Normalize(ref)
	if err != nil {
		return nil, err
	}
	named, err := reference.ParseNormalizedNamed(full)
	if err != nil {
		return nil, fmt.Errorf("%w: %q: %w", ErrInvalidName, ref, err)
	}
	unlock, err := s.pulling()
	if err != nil {
		return nil, err
	}
	defer unlock()
	host := reference.Domain(named)
	reg := s.registry(host)
	eps := reg.endpoints(host)
	plain := map[string]bool{}
	for _, e := range eps {
		if e.plain {
			plain[e.host] = true
		}
	}
	rt, err := reg.transport(plain)
	if err != nil {
		return nil, fmt.Errorf("pull %s: %w", ref, err)
	}
	defer rt.(*tlsOnly).next.CloseIdleConnections()
	if auth == nil {
		auth = anonymous{}
	}
	t := newTracker(full, progress)
	t.report("", "Resolving", 0, 0)
	var errs []error
	for _, e := range eps {
		img, err := s.pullFrom(ctx, e, named, auth, rt, t)
		if err == nil {
			t.report("", "Done", 0, 0)
			return img, nil
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("pull %s: %w", ref, ctx.Err())
		}
		if len(eps) > 1 {
			err = fmt.Errorf("from %s: %w", e, err)
			s.log.Info("image not pulled from here", "image", full, "endpoint", e.String(), "err", err)
		}
		errs = append(errs, err)
	}
	// The registry's own word comes last and counts; mirrors are named before.
	return nil, fmt.Errorf("failed to pull image %q: %w", ref, pullError(errs))
}

// pullError joins what several endpoints said; only the last one's kind counts.
func pullError(errs []error) error {
	last := errs[len(errs)-1]
	if len(errs) == 1 {
		return last
	}
	var texts []string
	for _, e := range errs[:len(errs)-1] {
		texts = append(texts, e.Error())
	}
	return fmt.Errorf("%s; %w", strings.Join(texts, "; "), last)
}

func (s *Store) pullFrom(ctx context.Context, e endpoint, named reference.Named, auth authn.Keychain, rt http.RoundTripper, t *tracker) (*Image, error) {
	repo := reference.Path(named)
	if e.prefix != "" {
		repo = e.prefix + "/" + repo
	}
	var opts []name.Option
	if e.plain {
		opts = append(opts, name.Insecure)
	}
	r, err := name.NewRepository(e.host+"/"+repo, opts...)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalidName, err)
	}
	var target name.Reference
	if d, ok := named.(reference.Digested); ok {
		target = r.Digest(d.Digest().String())
	} else if tg, ok := named.(reference.Tagged); ok {
		target = r.Tag(tg.Tag())
	} else {
		return nil, fmt.Errorf("%w: %s has neither tag nor digest", ErrInvalidName, named)
	}
	desc, err := remote.Get(target, remote.WithContext(ctx), remote.WithAuthFromKeychain(auth), remote.WithTransport(rt), remote.WithPlatform(platform()))
	if err != nil {
		return nil, registryError(err)
	}
	img, err := desc.Image()
	if err != nil {
		return nil, registryError(err)
	}
	src, err := remoteSource(img)
	if err != nil {
		return nil, registryError(err)
	}
	if tg, ok := named.(reference.Tagged); ok {
		if _, digested := named.(reference.Digested); !digested {
			src.tags = []string{reference.TrimNamed(named).String() + ":" + tg.Tag()}
		}
	}
	src.digests = []string{reference.TrimNamed(named).String() + "@" + desc.Digest.String()}
	return s.add(ctx, src, false, t)
}

// registryError says what a registry's refusal means.
func registryError(err error) error {
	var te *transport.Error
	if errors.As(err, &te) {
		switch te.StatusCode {
		case http.StatusUnauthorized, http.StatusForbidden:
			return fmt.Errorf("%w: the repository does not exist or needs other credentials: %w", ErrUnauthorized, err)
		case http.StatusNotFound:
			return fmt.Errorf("%w: %w", ErrNotFound, err)
		}
	}
	if strings.Contains(err.Error(), "no child with platform") {
		return fmt.Errorf("%w: no variant for %s/%s: %w", ErrNotFound, platform().OS, platform().Architecture, err)
	}
	return err
}

// remoteSource describes a registry's image for the store.
func remoteSource(img v1.Image) (*source, error) {
	cfg, err := img.RawConfigFile()
	if err != nil {
		return nil, err
	}
	id, err := img.ConfigName()
	if err != nil {
		return nil, err
	}
	src := &source{id: id.String(), config: cfg}
	layers, err := img.Layers()
	if err != nil {
		return nil, err
	}
	for _, l := range layers {
		diffID, err := l.DiffID()
		if err != nil {
			return nil, err
		}
		size, err := l.Size()
		if err != nil {
			return nil, err
		}
		src.layers = append(src.layers, layerSource{diffID: diffID.String(), size: size, open: func(ctx context.Context) (io.ReadCloser, error) {
			rc, err := l.Compressed()
			if err != nil {
				return nil, &readError{registryError(err)}
			}
			return newStallReader(ctx, rc), nil
		}})
	}
	return src, nil
}

// stallReader closes a download when it delivers nothing for too long, or when
// its context ends.
type stallReader struct {
	rc      io.ReadCloser
	timer   *time.Timer
	stopCtx func() bool
}

func newStallReader(ctx context.Context, rc io.ReadCloser) *stallReader {
	return &stallReader{
		rc:      rc,
		timer:   time.AfterFunc(stallTimeout, func() { rc.Close() }),
		stopCtx: context.AfterFunc(ctx, func() { rc.Close() }),
	}
}

func (r *stallReader) Read(b []byte) (int, error) {
	r.timer.Reset(stallTimeout)
	return r.rc.Read(b)
}

func (r *stallReader) Close() error {
	r.timer.Stop()
	r.stopCtx()
	return r.rc.Close()
}
