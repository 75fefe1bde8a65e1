package upgrade

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"
)

// folder keeps programs that it does not verify.
type folder struct{ dir string }

func (f folder) path(sum string) string { return filepath.Join(f.dir, sum) }

func (f folder) Get(sum string) (Binary, bool) {
	st, err := os.Stat(f.path(sum))
	if err != nil {
		return Binary{}, false
	}
	return Binary{SHA256: sum, Size: st.Size()}, true
}

func (f folder) Add(_ context.Context, b Binary, r io.Reader) error {
	content, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if sum := sha256.Sum256(content); hex.EncodeToString(sum[:]) != b.SHA256 {
		return errors.New("another content")
	}
	return os.WriteFile(f.path(b.SHA256), content, 0o600)
}

func (f folder) Open(sum string) (*os.File, Binary, error) {
	b, ok := f.Get(sum)
	if !ok {
		return nil, b, os.ErrNotExist
	}
	file, err := os.Open(f.path(sum))
	return file, b, err
}

// port serves a Service to whoever the header names.
func port(t *testing.T, s *Service) *httptest.Server {
	mux := http.NewServeMux()
	for path, h := range s.Handlers() {
		mux.Handle(path, h)
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u := &user.DefaultInfo{Name: "skiff:admin", Groups: []string{"system:masters"}}
		if n := r.Header.Get("Node"); n != "" {
			u = &user.DefaultInfo{Name: "system:node:" + n, Groups: []string{"system:nodes"}}
		}
		mux.ServeHTTP(w, r.WithContext(request.WithUser(r.Context(), u)))
	}))
	t.Cleanup(srv.Close)
	return srv
}

func send(t *testing.T, method, url, body string, headers ...string) (int, string, http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b), resp.Header
}

// TestProgramsOnThePort: one is uploaded to one server, and any server gives it,
// from any offset on.
func TestProgramsOnThePort(t *testing.T) {
	f := newFleet(t, 1, 2, 1)
	f.leader = "s0"
	servers := map[string]*httptest.Server{}
	for name := range f.services {
		s := f.services[name]
		s.c.Binaries = folder{t.TempDir()}
		s.c.From = func(ctx context.Context, server, sum string, h http.Header) (*http.Response, error) {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, servers[server].URL+BinaryPath+sum, nil)
			if err != nil {
				return nil, err
			}
			req.Header = h
			return http.DefaultClient.Do(req)
		}
		servers[name] = port(t, s)
	}
	content := strings.Repeat("program ", 1000)
	sum := sha256.Sum256([]byte(content))
	b := Binary{Version: "0.2.0", SHA256: hex.EncodeToString(sum[:]), Size: int64(len(content)), Platform: "linux/amd64", MinLevel: 1, MaxLevel: 2}
	about, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	header := base64.StdEncoding.EncodeToString(about)
	at := func(server string) string { return servers[server].URL + BinaryPath + b.SHA256 }

	for name, c := range map[string]struct {
		url, body, header string
		code              int
		want              string
	}{
		"no description":    {at("s1"), content, "", 400, "header Skiff-Binary"},
		"of another path":   {servers["s1"].URL + BinaryPath + strings.Repeat("0", 64), content, header, 400, "the path names"},
		"of another length": {at("s1"), "short", header, 400, "5 bytes are sent"},
		"another content":   {at("s1"), strings.ToUpper(content), header, 422, "server s1 does not take the program: another content"},
		"right":             {at("s1"), content, header, 200, `"holder":"s1"`},
	} {
		if code, text, _ := send(t, http.MethodPut, c.url, c.body, BinaryHeader, c.header); code != c.code || !strings.Contains(text, c.want) {
			t.Errorf("%s: %d %s", name, code, text)
		}
	}
	if code, text, _ := send(t, http.MethodPut, at("s1"), content, BinaryHeader, header); code != 200 {
		t.Fatalf("upload: %d %s", code, text)
	}
	if code, text, _ := send(t, http.MethodGet, at("s1")+"?describe", ""); code != 200 || !strings.Contains(text, `"holder":"s1"`) {
		t.Errorf("describe: %d %s", code, text)
	}
	if code, _, _ := send(t, http.MethodGet, at("s0"), ""); code != 503 {
		t.Errorf("s0 knows of no roll-out, and answers %d", code)
	}
	r := &Rollout{ID: "r", Binary: b, Holder: "s1", Stage: StageFetch, Members: []Member{{Name: "s0", Server: true}, {Name: "s1", Server: true}}}
	if err := f.services["s0"].write(t.Context(), r, 0, map[string]Order{"n0": {ID: "r-1", Action: Fetch, Binary: b}}); err != nil {
		t.Fatal(err)
	}
	for _, server := range []string{"s0", "s1"} { // s0 passes on what s1 gives
		code, text, h := send(t, http.MethodGet, at(server), "", "Node", "n0")
		if code != 200 || text != content || h.Get("ETag") == "" {
			t.Errorf("%s: %d, %d bytes", server, code, len(text))
		}
		code, text, h = send(t, http.MethodGet, at(server), "", "Node", "n0", "Range", "bytes=7990-")
		if code != 206 || text != content[7990:] || h.Get("Content-Range") != "bytes 7990-7999/8000" {
			t.Errorf("%s: the rest: %d %q %s", server, code, text, h.Get("Content-Range"))
		}
	}
	body, err := f.services["s0"].Fetch(t.Context(), b.SHA256, 7992)
	if err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(body)
	if err != nil || !bytes.Equal(rest, []byte(content[7992:])) {
		t.Errorf("fetched %q, %v", rest, err)
	}
	body.Close()
	if code, text, _ := send(t, http.MethodGet, at("s0"), "", passedOn, "s1"); code != 404 {
		t.Errorf("a request goes round: %d %s", code, text)
	}
}

func TestOrdersOnThePort(t *testing.T) {
	f := newFleet(t, 1, 1, 1)
	f.leader = "s0"
	s := f.services["s0"]
	srv := port(t, s)
	url := srv.URL + MemberPath
	if code, _, _ := send(t, http.MethodGet, url, ""); code != 403 {
		t.Errorf("an administrator has no orders: %d", code)
	}
	if code, _, _ := send(t, http.MethodGet, url, "", "Node", "n0"); code != 404 {
		t.Errorf("no order yet: %d", code)
	}
	r := &Rollout{ID: "r", Stage: StageFetch, Members: []Member{{Name: "n0", Tries: 1}}}
	before := s.Newest()
	if err := s.write(t.Context(), r, 0, map[string]Order{"n0": {ID: "r-1", Action: Fetch, Binary: target}}); err != nil {
		t.Fatal(err)
	}
	if s.Newest() <= before {
		t.Error("the others are not told of the order")
	}
	code, text, _ := send(t, http.MethodGet, url, "", "Node", "n0")
	var o Order
	if err := json.Unmarshal([]byte(text), &o); code != 200 || err != nil || o.ID != "r-1" || o.Binary.SHA256 != target.SHA256 {
		t.Errorf("order: %d %s", code, text)
	}
	for _, c := range []struct {
		node, report string
		kept         bool
	}{{"n0", `{"order":"other","phase":"done"}`, false}, {"stranger", `{"order":"r-1","phase":"done"}`, false}, {"n0", `{"order":"r-1","phase":"working","version":"0.1.0"}`, true}} {
		if code, text, _ := send(t, http.MethodPost, url, c.report, "Node", c.node); code != 200 {
			t.Errorf("%s: %d %s", c.report, code, text)
		}
		if have, _, _ := read[Report](f.fsm.Store().View(), ReportPrefix+c.node); (have != nil) != c.kept {
			t.Errorf("%s of %s: kept %+v", c.report, c.node, have)
		}
	}
	writes := f.writes
	send(t, http.MethodPost, url, `{"order":"r-1","phase":"working","version":"0.1.0"}`, "Node", "n0")
	if f.writes != writes {
		t.Error("the same report was written twice")
	}
	if code, _, _ := send(t, http.MethodPost, url, `{`, "Node", "n0"); code != 400 {
		t.Errorf("a damaged report: %d", code)
	}
	for _, c := range []struct {
		method, action string
		want           int
	}{
		{http.MethodGet, "", 200}, {http.MethodDelete, "", 405}, {http.MethodGet, "/pause", 405}, {http.MethodPost, "/plan", 400},
		{http.MethodPost, "/pause", 200}, {http.MethodPost, "/pause", 409}, {http.MethodPost, "/resume", 200}, {http.MethodPost, "/resume", 409},
		{http.MethodPost, "/rollback", 200}, {http.MethodPost, "/rollback", 409}, {http.MethodPost, "/finalize", 409},
	} {
		if code, text, _ := send(t, c.method, srv.URL+Path+c.action, ""); code != c.want {
			t.Errorf("%s %s: %d %s", c.method, c.action, code, text)
		}
	}
	if code, text, _ := send(t, http.MethodPost, srv.URL+Path+"/pause", "{"); code != 400 {
		t.Errorf("a damaged request: %d %s", code, text)
	}
}
