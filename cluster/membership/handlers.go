package membership

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"k8s.io/apiserver/pkg/endpoints/request"

	"github.com/skiff-sh/skiff/cluster/auth"
)

// OpenHandlers are served before authentication.
func (s *Service) OpenHandlers() map[string]http.Handler {
	return map[string]http.Handler{
		CAPath: s.handle(func(r *http.Request) (any, error) {
			return caAnswer{CA: s.c.Authority.Bundle()}, nil
		}, http.MethodGet),
		RemovedPath: s.handle(func(r *http.Request) (any, error) {
			q := r.URL.Query()
			return removedAnswer{Removal: s.removal(q.Get("id")), Unfit: s.unfit(r.Context(), q.Get("id"), q)}, nil
		}, http.MethodGet),
		JoinPath:       s.handle(s.serveJoin, http.MethodPost),
		RenewPath:      s.handle(s.serveRenew, http.MethodPost),
		NodeConfigPath: s.handle(func(r *http.Request) (any, error) { return s.nodeConfig(r) }, http.MethodGet),
	}
}

// caAnswer is what is told to anybody: certificates are no secrets.
type caAnswer struct {
	CA []byte `json:"ca"` // PEM
}

// removedAnswer tells of a former member; of others it tells nothing.
type removedAnswer struct {
	Removal *Removal `json:"removal"`
	Unfit   string   `json:"unfit,omitempty"`
}

// Handlers are served to those whom authorization lets pass: administrators,
// and nodes for LeavePath.
func (s *Service) Handlers() map[string]http.Handler {
	return map[string]http.Handler{
		StatusPath:        s.handle(func(r *http.Request) (any, error) { return s.Status(r.Context()), nil }, http.MethodGet),
		TokensPath:        s.handle(s.serveTokens, http.MethodGet, http.MethodPost),
		TokensPath + "/":  s.handle(s.deleteToken, http.MethodDelete),
		MembersPath:       s.handle(func(r *http.Request) (any, error) { return s.Status(r.Context()).Members, nil }, http.MethodGet),
		MembersPath + "/": s.handle(s.serveMember, http.MethodDelete, http.MethodPost),
		LeavePath:         s.handle(s.serveLeave, http.MethodPost),
	}
}

const maxBody = 64 << 10

// handle answers with what f gives, as JSON.
func (s *Service) handle(f func(*http.Request) (any, error), methods ...string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var answer any
		err := refuse(http.StatusMethodNotAllowed, "only %s is allowed", strings.Join(methods, " and "))
		for _, m := range methods {
			if r.Method == m {
				r.Body = http.MaxBytesReader(w, r.Body, maxBody)
				answer, err = f(r)
				break
			}
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		if err != nil {
			status := statusOf(err)
			if status == http.StatusServiceUnavailable {
				w.Header().Set("Retry-After", "1")
			}
			if status == http.StatusInternalServerError {
				s.c.Logger.Error("request failed", "path", r.URL.Path, "error", err)
			}
			w.WriteHeader(status)
			f := failure{Message: err.Error()}
			if r := new(Refusal); errors.As(err, &r) {
				f.Removed = r.Removed
			}
			answer = f
		}
		if err := json.NewEncoder(w).Encode(answer); err != nil {
			s.c.Logger.Debug("answer", "path", r.URL.Path, "error", err)
		}
	})
}

// body decodes the JSON body of a request.
func body[T any](r *http.Request) (*T, error) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "read the request: %v", err)
	}
	v, err := decodeJSON[T](b)
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "the request is damaged: %v", err)
	}
	return v, nil
}

const bearerPrefix = "Bearer "

func (s *Service) serveJoin(r *http.Request) (any, error) {
	from := caller(r)
	if wait := s.attempts.wait(from); wait > 0 {
		return nil, refuse(http.StatusTooManyRequests, "too many wrong tokens from %s: try again in %s", from, wait.Round(time.Second)+time.Second)
	}
	req, err := body[JoinRequest](r)
	if err != nil {
		return nil, err
	}
	shown, ok := strings.CutPrefix(r.Header.Get("Authorization"), bearerPrefix)
	if !ok {
		return nil, refuse(http.StatusUnauthorized, "the request has no token")
	}
	a, err := s.Join(r.Context(), shown, *req)
	if err != nil {
		if statusOf(err) == http.StatusUnauthorized {
			s.attempts.failed(from)
		}
		s.c.Logger.Warn("a host may not join", "name", req.Name, "role", req.Role, "from", from, "reason", err)
	}
	return a, err
}

func (s *Service) serveRenew(r *http.Request) (any, error) {
	req, err := body[RenewRequest](r)
	if err != nil {
		return nil, err
	}
	a, err := s.Renew(r.Context(), *req)
	if err != nil {
		s.c.Logger.Warn("the certificate of a node is not renewed", "from", caller(r), "reason", err)
	}
	return a, err
}

func (s *Service) serveTokens(r *http.Request) (any, error) {
	if r.Method == http.MethodGet {
		return s.Tokens(r.Context())
	}
	req, err := body[TokenRequest](r)
	if err != nil {
		return nil, err
	}
	return s.CreateToken(r.Context(), *req)
}

func (s *Service) deleteToken(r *http.Request) (any, error) {
	id := strings.TrimPrefix(r.URL.Path, TokensPath+"/")
	return struct{}{}, s.DeleteToken(r.Context(), id)
}

// serveMember answers DELETE .../NAME[?force=true] and POST .../NAME/promote.
func (s *Service) serveMember(r *http.Request) (any, error) {
	name, action, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, MembersPath+"/"), "/")
	switch {
	case r.Method == http.MethodDelete && action == "":
		force := false
		if f := r.URL.Query().Get("force"); f != "" {
			var err error
			if force, err = strconv.ParseBool(f); err != nil {
				return nil, refuse(http.StatusBadRequest, "force %q: want true or false", f)
			}
		}
		return s.Remove(r.Context(), name, userName(r), force)
	case r.Method == http.MethodPost && action == "promote":
		return struct{}{}, s.Promote(r.Context(), name)
	}
	return nil, refuse(http.StatusNotFound, "there is no %s %s", r.Method, r.URL.Path)
}

func userName(r *http.Request) string {
	if u, ok := request.UserFrom(r.Context()); ok {
		return u.GetName()
	}
	return "an unknown user"
}

// serveLeave removes the caller if it is a node, or else the member with the ID
// that the caller has read on its host.
func (s *Service) serveLeave(r *http.Request) (any, error) {
	u, ok := request.UserFrom(r.Context())
	if !ok {
		return nil, refuse(http.StatusUnauthorized, "who leaves?")
	}
	force := r.URL.Query().Get("force") == "true"
	if name, ok := auth.NodeName(u); ok {
		return s.Remove(r.Context(), name, "skiff leave on "+name, force)
	}
	id := r.URL.Query().Get("id")
	if id == "" {
		return nil, refuse(http.StatusBadRequest, "the ID of the member that leaves is missing")
	}
	name := s.nameOf(id)
	if name == id {
		if err := s.Admit(id, ""); err != nil {
			return nil, refuse(http.StatusConflict, "%v", err)
		}
		return nil, refuse(http.StatusNotFound, "this host is no member of the cluster")
	}
	return s.Remove(r.Context(), name, "skiff leave on "+name, force)
}
