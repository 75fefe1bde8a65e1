package trust

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/skiff-sh/skiff/cluster/pki"
)

// Paths on the API port.
const (
	StatusPath          = "/skiff/v1/certs"
	RotatePath          = "/skiff/v1/certs/rotate"
	RotateCAPath        = "/skiff/v1/certs/rotate-ca" // ?finish=true, ?finish=true&force=true
	RotateGossipKeyPath = "/skiff/v1/certs/rotate-gossip-key"
)

// Status is what `skiff certs status` shows.
type Status struct {
	// Generation of what is trusted, as the state has it.
	Generation uint64 `json:"generation"`
	CAs        []CA   `json:"cas"`
	GossipKeys int    `json:"gossipKeys"`
	// Rotations that are under way.
	CARotation     *Rotation `json:"caRotation,omitempty"`
	GossipRotation *Rotation `json:"gossipRotation,omitempty"`
	// WaitingOn are the members that are alive and have not installed Generation;
	// a rotation goes on when there are none.
	WaitingOn []string `json:"waitingOn,omitempty"`
	// Absent are those that have not and are not alive.
	Absent  []string       `json:"absent,omitempty"`
	Members []MemberStatus `json:"members"`
	// Problem says why this server could not install Generation.
	Problem string `json:"problem,omitempty"`
}

// CA is one that is trusted.
type CA struct {
	Name string `json:"name"`
	// SHA256 of the certificate.
	SHA256    string    `json:"sha256"`
	Issued    time.Time `json:"issued"`
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
	Signs     bool      `json:"signs"`
}

// MemberStatus is one member with the certificates that it shows.
type MemberStatus struct {
	Name         string        `json:"name"`
	Alive        bool          `json:"alive"`
	Generation   uint64        `json:"generation"`
	Certificates []Certificate `json:"certificates"`
}

// Certificate is what one port of a member shows.
type Certificate struct {
	// Purpose is "api", "raft" or "node".
	Purpose   string    `json:"purpose"`
	Subject   string    `json:"subject,omitempty"`
	CA        string    `json:"ca,omitempty"`
	Issued    time.Time `json:"issued,omitzero"`
	NotBefore time.Time `json:"notBefore,omitzero"`
	NotAfter  time.Time `json:"notAfter,omitzero"`
	RenewAt   time.Time `json:"renewAt,omitzero"`
	// Problem: it can't be seen, or is not to be trusted.
	Problem string `json:"problem,omitempty"`
}

// lookTimeout bounds the look at one port.
const lookTimeout = 2 * time.Second

// Status looks at the certificates that every member shows at its ports.
func (t *Trust) Status(ctx context.Context) (Status, error) {
	d, err := t.read(ctx, t.stored())
	s := Status{CAs: []CA{}, Members: []MemberStatus{}}
	if err != nil {
		return s, err
	}
	for i, c := range t.cfg.PKI.CAs() {
		sum := sha256.Sum256(c.Raw)
		s.CAs = append(s.CAs, CA{Name: c.Subject.CommonName, SHA256: hex.EncodeToString(sum[:]), Issued: pki.IssuedAt(c), NotBefore: c.NotBefore, NotAfter: c.NotAfter, Signs: i == 0})
	}
	t.mu.Lock()
	if t.problem != nil {
		s.Problem = t.problem.Error()
	}
	own := t.installed
	t.mu.Unlock()
	if d != nil {
		s.Generation, s.GossipKeys, s.CARotation, s.GossipRotation = d.Generation, len(d.GossipKeys), d.CARotation, d.GossipRotation
		s.WaitingOn = t.behind(d.Generation, true)
		for _, name := range t.behind(d.Generation, false) {
			if !slices.Contains(s.WaitingOn, name) {
				s.Absent = append(s.Absent, name)
			}
		}
	}
	members := t.members()
	if !slices.ContainsFunc(members, func(m Member) bool { return m.Name == t.cfg.Name }) {
		me := Member{Name: t.cfg.Name, Alive: true}
		if own != nil {
			me.Trust = own.Generation
		}
		members = append(members, me)
	}
	s.Members = t.look(ctx, members)
	return s, nil
}

// look connects to the ports of all members that are alive.
func (t *Trust) look(ctx context.Context, members []Member) []MemberStatus {
	out := make([]MemberStatus, len(members))
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	var wg sync.WaitGroup
	few := make(chan struct{}, 32)
	for i, m := range members {
		purposes := slices.Sorted(maps.Keys(m.Ports))
		out[i] = MemberStatus{Name: m.Name, Alive: m.Alive, Generation: m.Trust, Certificates: make([]Certificate, len(purposes))}
		for j, purpose := range purposes {
			c := &out[i].Certificates[j]
			c.Purpose = purpose
			if !m.Alive {
				c.Problem = "the member is not alive"
				continue
			}
			wg.Go(func() {
				few <- struct{}{}
				defer func() { <-few }()
				t.lookAt(ctx, m.Ports[purpose], c)
			})
		}
	}
	wg.Wait()
	slices.SortFunc(out, func(a, b MemberStatus) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// errSeen ends a handshake once the certificate is known: nothing is to be said
// to the peer.
var errSeen = errors.New("seen")

func (t *Trust) lookAt(ctx context.Context, addr string, c *Certificate) {
	var chain []*x509.Certificate
	// The handshake is given up when the certificate is there, so nothing depends
	// on its verification, which comes below.
	d := tls.Dialer{NetDialer: &net.Dialer{}, Config: &tls.Config{
		MinVersion: tls.VersionTLS12, InsecureSkipVerify: true, NextProtos: []string{"h2", "http/1.1", "skiff-rpc/1"},
		VerifyConnection: func(s tls.ConnectionState) error { chain = s.PeerCertificates; return errSeen },
	}}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err == nil {
		conn.Close()
	}
	if len(chain) == 0 {
		c.Problem = "no answer at " + addr
		if err != nil {
			c.Problem += ": " + err.Error()
		}
		return
	}
	leaf, between := chain[0], x509.NewCertPool()
	for _, i := range chain[1:] {
		between.AddCert(i)
	}
	c.Subject, c.CA, c.Issued = leaf.Subject.CommonName, leaf.Issuer.CommonName, pki.IssuedAt(leaf)
	c.NotBefore, c.NotAfter, c.RenewAt = leaf.NotBefore, leaf.NotAfter, pki.RenewAt(leaf)
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: t.cfg.PKI.Pool(), Intermediates: between}); err != nil {
		c.Problem = err.Error()
	}
}

// Handlers serve Status and the rotations, for administrators.
func (t *Trust) Handlers() map[string]http.Handler {
	post := func(do func(r *http.Request) error) http.Handler {
		return method(http.MethodPost, func(w http.ResponseWriter, r *http.Request) {
			switch err := do(r); {
			case errors.Is(err, errParameter):
				http.Error(w, err.Error(), http.StatusBadRequest)
			case errors.Is(err, ErrRefused):
				http.Error(w, err.Error(), http.StatusConflict)
			case err != nil:
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
			default:
				t.answer(w, r)
			}
		})
	}
	return map[string]http.Handler{
		StatusPath:          method(http.MethodGet, t.answer),
		RotatePath:          post(func(r *http.Request) error { return t.RotateLeaves(r.Context()) }),
		RotateGossipKeyPath: post(func(r *http.Request) error { return t.RotateGossipKey(r.Context()) }),
		RotateCAPath: post(func(r *http.Request) error {
			finish, err := flag(r, "finish")
			force, err2 := flag(r, "force")
			if err = errors.Join(err, err2); err != nil {
				return err
			}
			if !finish && force {
				return fmt.Errorf("%w: force goes with finish", errParameter)
			}
			if !finish {
				return t.RotateCA(r.Context(), false)
			}
			_, err = t.FinishCA(r.Context(), force)
			return err
		}),
	}
}

var errParameter = errors.New("a parameter is wrong")

func flag(r *http.Request, name string) (bool, error) {
	v := r.URL.Query().Get(name)
	if v == "" {
		return false, nil
	}
	on, err := strconv.ParseBool(v)
	if err != nil {
		return false, fmt.Errorf("%w: %s is %q, want true or false", errParameter, name, v)
	}
	return on, nil
}

func (t *Trust) answer(w http.ResponseWriter, r *http.Request) {
	s, err := t.Status(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(s) // the client has gone
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
