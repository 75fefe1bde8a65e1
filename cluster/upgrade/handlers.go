package upgrade

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"k8s.io/apiserver/pkg/endpoints/request"

	"github.com/skiff-sh/skiff/cluster/auth"
	"github.com/skiff-sh/skiff/cluster/consensus"
)

// BinaryHeader holds the description of a binary that is uploaded: a Binary as
// JSON in base64.
const BinaryHeader = "Skiff-Binary"

// passedOn marks a request for a binary that another server passes on.
const passedOn = "Skiff-Passed-On"

// Uploaded is the answer to an upload, and to the question whether a server has a
// binary.
type Uploaded struct {
	Binary Binary `json:"binary"`
	Holder string `json:"holder"` // name of the server that has it
}

const maxBody = 256 << 10

// Handlers are served to those whom authorization lets pass: administrators all,
// nodes what is below MemberPath and BinaryPath.
func (s *Service) Handlers() map[string]http.Handler {
	out := map[string]http.Handler{
		Path:       s.handle(http.MethodGet, func(r *http.Request) (any, error) { return s.Do(r.Context(), ActStatus, Request{}) }),
		BinaryPath: http.HandlerFunc(s.serveBinary),
		MemberPath: http.HandlerFunc(s.serveMember),
	}
	for _, action := range []string{ActPlan, ActApply, ActPause, ActResume, ActRollback, ActFinalize} {
		out[Path+"/"+action] = s.handle(http.MethodPost, func(r *http.Request) (any, error) {
			q, err := body[Request](r)
			if err != nil {
				return nil, err
			}
			q.By = userName(r)
			return s.Do(r.Context(), action, *q)
		})
	}
	return out
}

func userName(r *http.Request) string {
	if u, ok := request.UserFrom(r.Context()); ok {
		return u.GetName()
	}
	return "unknown"
}

// body decodes the JSON body of a request; none is the zero value.
func body[T any](r *http.Request) (*T, error) {
	b, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, maxBody))
	if err != nil {
		return nil, refuse(http.StatusBadRequest, "read the request: %v", err)
	}
	v := new(T)
	if len(b) == 0 {
		return v, nil
	}
	if err := json.Unmarshal(b, v); err != nil {
		return nil, refuse(http.StatusBadRequest, "the request is damaged: %v", err)
	}
	return v, nil
}

// handle answers with what f gives, as JSON.
func (s *Service) handle(method string, f func(*http.Request) (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != method {
			w.Header().Set("Allow", method)
			s.answer(w, r, nil, refuse(http.StatusMethodNotAllowed, "only %s is allowed", method))
			return
		}
		v, err := f(r)
		s.answer(w, r, v, err)
	})
}

func (s *Service) answer(w http.ResponseWriter, r *http.Request, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	if err != nil {
		status := statusOf(err)
		switch status {
		case http.StatusServiceUnavailable:
			w.Header().Set("Retry-After", "1")
		case http.StatusInternalServerError:
			s.c.Logger.Error("request failed", "path", r.URL.Path, "error", err)
		}
		w.WriteHeader(status)
		v = struct {
			Message string `json:"message"`
		}{err.Error()}
	}
	if err := json.NewEncoder(w).Encode(v); err != nil {
		s.c.Logger.Debug("answer", "path", r.URL.Path, "error", err)
	}
}

func statusOf(err error) int {
	var r *Refusal
	switch {
	case errors.As(err, &r):
		return r.Status
	case errors.Is(err, consensus.ErrVersion):
		return http.StatusConflict
	case errors.Is(err, errRace), errors.Is(err, consensus.ErrNoLeader), errors.Is(err, consensus.ErrNotLeader), errors.Is(err, consensus.ErrUnknownOutcome),
		errors.Is(err, consensus.ErrStopped), errors.Is(err, consensus.ErrNoSpace), errors.Is(err, consensus.ErrRemoved), errors.Is(err, consensus.ErrNotReady):
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// serveMember answers a member that asks for its order, or reports on it. Which
// one it is its certificate says.
func (s *Service) serveMember(w http.ResponseWriter, r *http.Request) {
	name, ok := "", false
	if u, known := request.UserFrom(r.Context()); known {
		name, ok = auth.NodeName(u)
	}
	if !ok {
		s.answer(w, r, nil, refuse(http.StatusForbidden, "only a node has orders: %s is none", userName(r)))
		return
	}
	switch r.Method {
	case http.MethodGet:
		o, err := s.Order(r.Context(), name)
		if o == nil && err == nil {
			err = refuse(http.StatusNotFound, "there is no order for %s", name)
		}
		s.answer(w, r, o, err)
	case http.MethodPost:
		rep, err := body[Report](r)
		if err == nil {
			err = s.Report(r.Context(), name, *rep)
		}
		s.answer(w, r, struct{}{}, err)
	default:
		w.Header().Set("Allow", "GET, POST")
		s.answer(w, r, nil, refuse(http.StatusMethodNotAllowed, "only GET and POST are allowed"))
	}
}

// serveBinary takes and gives programs.
func (s *Service) serveBinary(w http.ResponseWriter, r *http.Request) {
	sum := strings.TrimPrefix(r.URL.Path, BinaryPath)
	if s.c.Binaries == nil {
		s.answer(w, r, nil, refuse(http.StatusNotImplemented, "this server keeps no programs"))
		return
	}
	switch r.Method {
	case http.MethodPut:
		up, err := s.upload(r, sum)
		s.answer(w, r, up, err)
	case http.MethodGet, http.MethodHead:
		s.giveBinary(w, r, sum)
	default:
		w.Header().Set("Allow", "GET, HEAD, PUT")
		s.answer(w, r, nil, refuse(http.StatusMethodNotAllowed, "only GET, HEAD and PUT are allowed"))
	}
}

func (s *Service) upload(r *http.Request, sum string) (*Uploaded, error) {
	var b Binary
	text, err := base64.StdEncoding.DecodeString(r.Header.Get(BinaryHeader))
	if err == nil {
		err = json.Unmarshal(text, &b)
	}
	switch {
	case err != nil:
		return nil, refuse(http.StatusBadRequest, "header %s: %v", BinaryHeader, err)
	case b.SHA256 != sum:
		return nil, refuse(http.StatusBadRequest, "header %s describes a program with the SHA-256 %q, the path names %q", BinaryHeader, b.SHA256, sum)
	case r.ContentLength >= 0 && r.ContentLength != b.Size:
		return nil, refuse(http.StatusBadRequest, "%d bytes are sent, header %s says %d", r.ContentLength, BinaryHeader, b.Size)
	}
	err = s.c.Binaries.Add(r.Context(), b, r.Body)
	if cerr := r.Context().Err(); err != nil && cerr != nil {
		return nil, refuse(http.StatusRequestTimeout, "the upload was interrupted: %v", err)
	}
	if err != nil {
		return nil, refuse(http.StatusUnprocessableEntity, "server %s does not take the program: %v", s.c.Name, err)
	}
	s.c.Logger.Info("a program was uploaded", "version", b.Version, "sha256", b.SHA256, "by", userName(r))
	return &Uploaded{Binary: b, Holder: s.c.Name}, nil
}

// giveBinary sends a program, or passes on what another server sends.
func (s *Service) giveBinary(w http.ResponseWriter, r *http.Request, sum string) {
	f, b, err := s.c.Binaries.Open(sum)
	if err == nil {
		defer f.Close()
		if r.URL.Query().Has("describe") {
			s.answer(w, r, Uploaded{Binary: b, Holder: s.c.Name}, nil)
			return
		}
		s.sendFile(w, r, f, sum)
		return
	}
	if r.Header.Get(passedOn) != "" || s.c.From == nil || r.URL.Query().Has("describe") {
		s.answer(w, r, nil, refuse(http.StatusNotFound, "server %s has no program %s", s.c.Name, sum))
		return
	}
	h := http.Header{}
	for _, name := range []string{"Range", "If-Range"} {
		if v := r.Header.Get(name); v != "" {
			h.Set(name, v)
		}
	}
	resp, err := s.fromOthers(r.Context(), sum, h)
	if err != nil {
		s.answer(w, r, nil, refuse(http.StatusServiceUnavailable, "%v", err))
		return
	}
	defer resp.Body.Close()
	for _, name := range []string{"Content-Type", "Content-Length", "Content-Range", "Accept-Ranges", "ETag"} {
		if v := resp.Header.Get(name); v != "" {
			w.Header().Set(name, v)
		}
	}
	w.WriteHeader(resp.StatusCode)
	if _, err := io.Copy(w, resp.Body); err != nil {
		panic(http.ErrAbortHandler) // the content is not whole
	}
}

// fromOthers asks the servers that have a program for it.
func (s *Service) fromOthers(ctx context.Context, sum string, h http.Header) (*http.Response, error) {
	h.Set(passedOn, s.c.Name)
	last := fmt.Errorf("server %s has no program %s, and knows of no other that has", s.c.Name, sum)
	for _, holder := range s.holders(sum) {
		resp, err := s.c.From(ctx, holder, sum, h.Clone())
		if err == nil && resp.StatusCode/100 == 2 {
			return resp, nil
		}
		if err == nil {
			err = errors.Join(errors.New(resp.Status), resp.Body.Close())
		}
		last = fmt.Errorf("server %s, which has the program: %w", holder, err)
	}
	return nil, last
}

// Fetch gives the program of the present roll-out, from an offset on, from
// another server.
func (s *Service) Fetch(ctx context.Context, sum string, offset int64) (io.ReadCloser, error) {
	if s.c.From == nil {
		return nil, errors.New("no other server can be asked")
	}
	h := http.Header{}
	if offset > 0 {
		h.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	resp, err := s.fromOthers(ctx, sum, h)
	if err != nil {
		return nil, err
	}
	if offset > 0 && !strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", offset)) {
		return nil, errors.Join(fmt.Errorf("a server does not give the rest of the program from %d on", offset), resp.Body.Close())
	}
	return resp.Body, nil
}

// sendFile answers with the file, or a range of it.
func (s *Service) sendFile(w http.ResponseWriter, r *http.Request, f *os.File, sum string) {
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("ETag", fmt.Sprintf("%q", sum))
	http.ServeContent(w, r, "", time.Time{}, f)
}

// holders are the other servers that have the program of the present roll-out:
// the one that was given it, and those that have got it.
func (s *Service) holders(sum string) []string {
	r, _, err := read[Rollout](s.c.Store.View(), RolloutKey)
	if err != nil || r == nil || r.Binary.SHA256 != sum {
		return nil
	}
	out := []string{r.Holder}
	for _, m := range r.Members {
		if m.Server && m.Name != r.Holder && m.State != StateWaiting && m.State != StateFetching && m.State != StateSkipped {
			out = append(out, m.Name)
		}
	}
	return slices.DeleteFunc(out, func(name string) bool { return name == s.c.Name })
}
