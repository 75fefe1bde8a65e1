package backup

import (
	"bytes"
	"crypto/md5"
	"crypto/sha256"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What a real service does is tried in cmd/test/integration.

func TestNewS3(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string, mode fs.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := file("good", "[default]\naws_access_key_id = a\naws_secret_access_key = b\n", 0o600)
	keys := S3Config{AccessKey: "a", SecretKey: "b"}
	with := func(change func(*S3Config)) S3Config {
		c := keys
		change(&c)
		return c
	}
	for name, c := range map[string]struct {
		place string
		c     S3Config
		want  string // of the error
	}{
		"amazon":            {"s3://bucket/a/b/", keys, ""},
		"no prefix":         {"s3://bucket", keys, ""},
		"file":              {"s3://bucket/a", S3Config{CredentialsFile: good}, ""},
		"plain http, asked": {"s3://bucket", with(func(c *S3Config) { c.Endpoint, c.Insecure = "http://127.0.0.1:9000", true }), ""},
		"plain http":        {"s3://bucket", with(func(c *S3Config) { c.Endpoint = "http://127.0.0.1:9000" }), "not encrypted"},
		"no scheme":         {"s3://bucket", with(func(c *S3Config) { c.Endpoint = "127.0.0.1:9000" }), "want https://HOST"},
		"endpoint's path":   {"s3://bucket", with(func(c *S3Config) { c.Endpoint = "https://host/bucket" }), "want a host only"},
		"password":          {"s3://bucket", with(func(c *S3Config) { c.Endpoint = "https://me:secret@host" }), "want a host only"},
		"no keys":           {"s3://bucket", S3Config{}, "credentials are missing"},
		"half a key":        {"s3://bucket", S3Config{AccessKey: "a"}, "credentials are missing"},
		"readable file":     {"s3://bucket", S3Config{CredentialsFile: file("open", "x", 0o644)}, "chmod 600"},
		"other file":        {"s3://bucket", S3Config{CredentialsFile: file("text", "hello\n", 0o600)}, filepath.Join(dir, "text")},
		"empty file":        {"s3://bucket", S3Config{CredentialsFile: file("empty", "[default]\n", 0o600)}, "has no aws_access_key_id"},
		"no file":           {"s3://bucket", S3Config{CredentialsFile: filepath.Join(dir, "none")}, "no such file"},
		"no CA":             {"s3://bucket", with(func(c *S3Config) { c.CAFile = good }), "no PEM certificate"},
		"no bucket":         {"s3:///a", keys, "want s3://BUCKET/PREFIX"},
		"short bucket":      {"s3://ab/a", keys, "no name of a bucket"},
		"other scheme":      {"gs://bucket/a", keys, "want s3://BUCKET/PREFIX"},
		"dots":              {"s3://bucket/a/../b", keys, "two dots"},
		"empty part":        {"s3://bucket/a//b", keys, "may be empty"},
	} {
		s, err := NewS3(c.place, c.c)
		if c.want == "" && (err != nil || s.String() != strings.TrimSuffix(c.place, "/")) {
			t.Errorf("%s: %v, %v", name, s, err)
		}
		if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "secret@")) {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
}

func TestETag(t *testing.T) {
	content := []byte(strings.Repeat("0123456789", 1000))
	for _, part := range []int{1, 7, 3333, 10000, 10001} {
		c := &sent{r: bytes.NewReader(content), partSize: int64(part), whole: md5.New(), part: md5.New(), sha: sha256.New()}
		if _, err := io.CopyBuffer(io.Discard, c, make([]byte, 1234)); err != nil {
			t.Fatal(err)
		}
		var sums []byte
		n := 0
		for b := content; len(b) > 0; n++ {
			k := min(part, len(b))
			sum := md5.Sum(b[:k])
			sums, b = append(sums, sum[:]...), b[k:]
		}
		whole := md5.Sum(content)
		for etag, want := range map[string]bool{
			fmt.Sprintf("%x", whole): true, fmt.Sprintf("%x-%d", md5.Sum(sums), n): true,
			fmt.Sprintf("%x-%d", md5.Sum(sums), n+1): false, fmt.Sprintf("%x", md5.Sum(content[1:])): false, "": false,
		} {
			if c.isETag(etag) != want {
				t.Errorf("parts of %d: %s is %v", part, etag, !want)
			}
		}
	}
}

// service answers as S3 does for one object, and may do it wrongly.
type service struct {
	object []byte
	etag   string // instead of the MD5
	lose   int    // bytes at the end that are not stored
	flip   bool   // a byte that is not stored as it came
	error  string // code of the answer to everything
	log    []string
}

func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.log = append(s.log, r.Method)
	body, _ := io.ReadAll(r.Body)
	refuse := func(code int, name string) {
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(code)
		if r.Method != http.MethodHead {
			fmt.Fprintf(w, "<Error><Code>%s</Code><Message>no</Message></Error>", name)
		}
	}
	switch {
	case s.error != "":
		refuse(http.StatusForbidden, s.error)
		return
	case r.Method == http.MethodPut:
		s.object = body[:len(body)-s.lose]
		if s.flip {
			s.object[0] ^= 1
		}
	case r.Method == http.MethodDelete:
		s.object = nil
		w.WriteHeader(http.StatusNoContent)
		return
	case s.object == nil:
		refuse(http.StatusNotFound, "NoSuchKey")
		return
	}
	etag := s.etag
	if etag == "" {
		etag = fmt.Sprintf("%x", md5.Sum(s.object))
	}
	w.Header().Set("ETag", `"`+etag+`"`)
	w.Header().Set("Last-Modified", "Sat, 21 Nov 2026 12:00:00 GMT")
	w.Header().Set("Content-Length", fmt.Sprint(len(s.object)))
	if r.Method == http.MethodGet {
		w.Write(s.object)
	} else if r.Method == http.MethodPut {
		w.Header().Set("Content-Length", "0")
	}
}

// TestS3Verifies what a service has stored, by its checksum or by reading it.
func TestS3Verifies(t *testing.T) {
	content := strings.Repeat("snapshot", 100)
	for name, c := range map[string]struct {
		service service
		want    string
		reads   bool
	}{
		"right":               {service: service{}},
		"no MD5":              {service: service{etag: "kms"}, reads: true},
		"short":               {service: service{lose: 3}, want: "797 bytes, 800 were sent"},
		"changed":             {service: service{flip: true}, want: "not what was sent", reads: true},
		"changed, and no MD5": {service: service{flip: true, etag: "kms"}, want: "not what was sent", reads: true},
		"there already":       {service: service{object: []byte("old")}, want: "already exists"},
		"wrong key":           {service: service{error: "InvalidAccessKeyId"}, want: "may not do this"},
	} {
		ts := httptest.NewTLSServer(&c.service)
		ca := filepath.Join(t.TempDir(), "ca.pem")
		if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ts.Certificate().Raw}), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := NewS3("s3://bucket/p", S3Config{Endpoint: ts.URL, AccessKey: "a", SecretKey: "b", CAFile: ca})
		if err != nil {
			t.Fatal(err)
		}
		before := bytes.Clone(c.service.object)
		err = s.Create(t.Context(), "x", strings.NewReader(content))
		reads := strings.Contains(strings.Join(c.service.log, " "), "GET")
		switch {
		case c.want == "" && (err != nil || string(c.service.object) != content):
			t.Errorf("%s: %v", name, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || !bytes.Equal(c.service.object, before)):
			t.Errorf("%s: %v, want %s; there is %q", name, err, c.want, c.service.object)
		}
		if reads != c.reads {
			t.Errorf("%s: %v", name, c.service.log)
		}
		ts.Close()
	}
}

func TestS3ErrorOfContent(t *testing.T) {
	s := &service{}
	ts := httptest.NewServer(s)
	defer ts.Close()
	p, err := NewS3("s3://bucket", S3Config{Endpoint: ts.URL, AccessKey: "a", SecretKey: "b", Insecure: true})
	if err != nil {
		t.Fatal(err)
	}
	gone := errors.New("gone")
	if err := p.Create(t.Context(), "x", io.MultiReader(strings.NewReader("half"), failing{gone})); !errors.Is(err, gone) || s.object != nil {
		t.Errorf("%v, there is %q", err, s.object)
	}
	for _, name := range []string{"", "a/b", "..", "."} {
		if err := p.Create(t.Context(), name, strings.NewReader("")); err == nil || s.object != nil {
			t.Errorf("name %q: %v", name, err)
		}
	}
	if _, _, err := p.Open(t.Context(), "x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open nothing: %v", err)
	}
	ts.Close()
	if _, err := p.List(t.Context()); err == nil || !strings.Contains(err.Error(), ts.URL) || !strings.Contains(err.Error(), "refused") {
		t.Errorf("nobody answers: %v", err)
	}
}
