//go:build integration

package integration

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// startRegistry serves a registry on a port of all addresses that this machine has
// or gets; what lies below private/ needs the user "bob" with the password
// "secret".
func startRegistry(t *testing.T) (port int) {
	t.Helper()
	l, err := net.Listen("tcp4", ":0")
	if err != nil {
		t.Fatal(err)
	}
	files := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		if (user != "bob" || password != "secret") && (r.URL.Path == "/v2/" || strings.Contains(r.URL.Path, "/private/")) {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED"}]}`, http.StatusUnauthorized)
			return
		}
		files.ServeHTTP(w, r)
	})}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Close() })
	return l.Addr().(*net.TCPAddr).Port
}

// TestPullFromRegistry: tags, digests, a private repository with and without
// its imagePullSecret, and skiff image.
func TestPullFromRegistry(t *testing.T) {
	addr := fmt.Sprintf("10.199.6.1:%d", startRegistry(t)) // our end of the link to the host
	config := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(config, []byte("registries: {\""+addr+"\": {plainHTTP: true}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := ownServer(t, "skiff-pull", 6, "--config", config)
	img, err := tarball.ImageFromPath(filepath.Join(shared.images, "busybox.tar"), nil)
	if err != nil {
		t.Fatal(err)
	}
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	for _, repo := range []string{"open/box:1", "private/box:1"} {
		ref, err := name.ParseReference(addr+"/"+repo, name.Insecure)
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Write(ref, img, remote.WithAuth(&authn.Basic{Username: "bob", Password: "secret"})); err != nil {
			t.Fatalf("push %s: %v", repo, err)
		}
	}
	s.kubectl(t, "create", "secret", "docker-registry", "bob", "--docker-server="+addr, "--docker-username=bob", "--docker-password=secret")
	pod := func(name, image, extra string) {
		s.apply(t, strings.Replace(box(name, `["true"]`, "  restartPolicy: Never\n"+extra), "skiff.test/busybox:1.36", addr+"/"+image, 1))
	}
	withSecret := "  imagePullSecrets: [{name: bob}]"
	pod("tag", "private/box:1", withSecret)
	pod("digest", "private/box@"+digest.String(), withSecret)
	pod("refused", "private/other:1", "")
	for _, p := range []string{"tag", "digest"} {
		eventually(t, 30*time.Second, func() error {
			if got := s.jsonpath(t, "default", "pod/"+p, "{.status.phase}"); got != "Succeeded" {
				return fmt.Errorf("phase %s: %s", got, s.jsonpath(t, "default", "pod/"+p, "{.status.containerStatuses[0].state}"))
			}
			return nil
		})
	}
	eventually(t, 30*time.Second, func() error {
		return wants(s.jsonpath(t, "default", "pod/refused", "{.status.containerStatuses[0].state.waiting.reason}"), "ImagePull")
	})
	if err := wants(s.jsonpath(t, "default", "pod/tag", "{.status.containerStatuses[0].imageID}"), digest.Hex); err != nil {
		t.Error(err)
	}
	ctx := t.Context()
	password := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(password, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	image := func(args ...string) (string, error) {
		return s.Skiff(ctx, append([]string{"image", args[0], "--data-dir", s.DataDir, "--config", config}, args[1:]...)...)
	}
	if _, err := image("pull", "--username", "bob", "--password-file", password, addr+"/private/box:1"); err != nil {
		t.Error(err)
	}
	out, err := image("ls")
	if err != nil || wants(out, addr+"/private/box:1") != nil {
		t.Errorf("ls: %v\n%s", err, out)
	}
	if _, err := image("pull", addr+"/private/none:1"); err == nil {
		t.Error("an image that is not there was pulled")
	}
	s.kubectl(t, "delete", "pod", "tag", "digest", "refused", "--now")
	eventually(t, 20*time.Second, func() error { // the node may be removing the containers
		_, err := image("rm", addr+"/private/box:1")
		return err
	})
}
