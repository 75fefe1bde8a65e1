package pod

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/skiff-sh/skiff/node/image"
)

// TestImagesOfOthers: an image that was pulled with one pod's credentials is
// there for those who have them.
func TestImagesOfOthers(t *testing.T) {
	w := newWorld(t)
	for name, password := range map[string]string{"right": "right", "same": "right", "wrong": "wrong"} {
		auth := base64.StdEncoding.EncodeToString([]byte("me:" + password))
		s := &v1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}, Type: v1.SecretTypeDockerConfigJson,
			Data: map[string][]byte{v1.DockerConfigJsonKey: fmt.Appendf(nil, `{"auths":{"reg.example":{"auth":%q}}}`, auth)}}
		if _, err := w.client.CoreV1().Secrets("default").Create(t.Context(), s, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	const ref = "reg.example/private:v1"
	pulls := -1
	img := &image.Image{ID: "sha256:9", Config: w.images.images["app"].Config}
	w.images.pull = func(string) (*image.Image, error) {
		if pulls++; pulls == 1 {
			return img, nil
		}
		return nil, image.ErrUnauthorized
	}
	user := func(name, secret string, policy v1.PullPolicy) {
		w.add(w.pod(name, func(p *v1.Pod) {
			p.Spec.Containers[0].Image, p.Spec.Containers[0].ImagePullPolicy = ref, policy
			for s := range strings.FieldsSeq(secret) {
				p.Spec.ImagePullSecrets = append(p.Spec.ImagePullSecrets, v1.LocalObjectReference{Name: s})
			}
		}))
	}
	waits := func(reason string) func(*v1.Pod) bool {
		return func(p *v1.Pod) bool {
			s := mainStatus(p).State.Waiting
			return s != nil && s.Reason == reason
		}
	}
	// The second of two credentials for a registry may be the one that is good.
	user("first", "wrong right", v1.PullIfNotPresent)
	w.await("first", "runs", isRunning)
	w.stop()
	w.images.mu.Lock()
	w.images.images[img.ID] = img // as the store finds it
	w.images.mu.Unlock()
	w.start([]*v1.Pod{w.get("first")})
	for _, tc := range []struct {
		name, secret string
		policy       v1.PullPolicy
		reason       string // it waits
	}{
		{"same", "same", v1.PullIfNotPresent, ""},
		{"same-never", "same", v1.PullNever, ""},
		{"second", "wrong same", v1.PullNever, ""},
		{"none", "", v1.PullIfNotPresent, "ErrImagePull"},
		{"wrong", "wrong", v1.PullIfNotPresent, "ErrImagePull"},
		{"none-never", "", v1.PullNever, "ErrImageNeverPull"},
	} {
		user(tc.name, tc.secret, tc.policy)
		if tc.reason == "" {
			w.await(tc.name, "runs", isRunning)
		} else {
			w.await(tc.name, "has to wait", waits(tc.reason))
		}
	}
	w.add(w.pod("imported")) // of which there is no record
	w.await("imported", "runs", isRunning)
}

func TestPullRecords(t *testing.T) {
	r := &pullRecords{dir: filepath.Join(t.TempDir(), "pulled")}
	is := func(what string, credential string, want bool) {
		t.Helper()
		ok, err := r.mayUse("sha256:1", "a/b:1", "a/b", func() ([]string, error) { return []string{"other", credential}, nil })
		if ok != want || err != nil {
			t.Errorf("%s: %v %v", what, ok, err)
		}
	}
	try := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	is("imported", "", true)
	try(r.pulling("a/b:1"))
	is("killed in the middle of a pull", "", false)
	try(r.pulling("a/b:1"))
	try(r.over("a/b:1"))
	is("one of two pulls has failed", "", false)
	try(r.pulled("sha256:1", "a/b", "x"))
	try(r.over("a/b:1"))
	try(r.over("a/b:1"))
	is("with the credentials", "x", true)
	is("with others", "y", false)
	is("without", "", false)
	try(r.pulled("sha256:1", "a/b", "y"))
	is("with others that were good, too", "y", true)
	is("the first ones", "x", true)
	try(r.pulled("sha256:1", "a/c", ""))
	is("only another repository has it for everybody", "", false)
	try(r.pulled("sha256:1", "a/b", ""))
	is("now everybody", "", true)
	if ok, err := r.mayUse("sha256:1", "a/d:1", "a/d", nil); ok || err != nil {
		t.Errorf("from a repository that nobody asked: %v %v", ok, err)
	}
	try(os.WriteFile(r.path("sha256:2"), []byte("{half"), 0o600))
	if ok, err := r.mayUse("sha256:2", "a/b:1", "a/b", nil); ok || err == nil {
		t.Error("a damaged record lets everybody in")
	}
	try(r.pulled("sha256:2", "a/b", ""))
	try(r.sweep(func(id string) bool { return id == "sha256:2" }))
	if _, err := os.Stat(r.path("sha256:1")); !os.IsNotExist(err) {
		t.Error("the record of an image that is gone stays")
	}
	if ok, err := r.mayUse("sha256:2", "a/b:1", "a/b", nil); !ok || err != nil {
		t.Errorf("%v %v", ok, err)
	}
}
