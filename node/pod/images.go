package pod

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "k8s.io/api/core/v1"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"

	"github.com/skiff-sh/skiff/node/image"
	"github.com/skiff-sh/skiff/node/meter"
)

// pulls fetches each image once, however many containers wait for it.
type pulls struct {
	images Images
	meter  *meter.Meter
	access *pullRecords
	log    *slog.Logger
	mu     sync.Mutex
	active map[string]*pull
}

type pull struct {
	done  chan struct{}
	img   *image.Image
	err   error
	took  time.Duration
	start time.Time
}

func newPulls(cfg Config) *pulls {
	return &pulls{images: cfg.Images, meter: cfg.Meter, log: cfg.Logger, active: map[string]*pull{},
		access: &pullRecords{dir: filepath.Join(cfg.DataDir, "pulled")}}
}

// fetch pulls an image, with one credential after the other, and records who may
// use it.
func (p *pulls) fetch(ctx context.Context, ref string, auth authn.Keychain) (*image.Image, error) {
	candidates, err := image.Candidates(auth, ref)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, c := range candidates {
		img, err := p.fetchWith(ctx, ref, c)
		if err == nil || ctx.Err() != nil {
			return img, err
		}
		errs = append(errs, err)
	}
	return nil, utilerrors.NewAggregate(errs)
}

func (p *pulls) fetchWith(ctx context.Context, ref string, auth authn.Keychain) (*image.Image, error) {
	repository, err := image.Repository(ref)
	if err != nil {
		return nil, err
	}
	credential, err := image.CredentialID(ctx, auth, ref)
	if err != nil {
		return nil, err
	}
	if credential != "" {
		if err := p.access.pulling(ref); err != nil {
			return nil, fmt.Errorf("recording that %s is pulled with credentials: %w", ref, err)
		}
	}
	img, err := p.images.Pull(ctx, ref, auth, nil)
	if err == nil {
		err = p.access.pulled(img.ID, repository, credential)
	}
	if ctx.Err() == nil && credential != "" {
		if err := p.access.over(ref); err != nil {
			p.log.Warn("recording the end of a pull", "image", ref, "err", err)
		}
	}
	return img, err
}

// get joins or starts a pull of ref with these credentials; wake is called
// when it ended. A pull goes on when its first pod is deleted: others may wait.
func (p *pulls) get(ctx context.Context, ref string, secrets [][]byte, wake func()) *pull {
	key := ref
	for _, s := range secrets {
		key += "\x00" + string(s)
	}
	p.mu.Lock()
	pl := p.active[key]
	if pl == nil {
		pl = &pull{done: make(chan struct{}), start: time.Now()}
		p.active[key] = pl
		go func() {
			auth, err := image.Keychain(secrets...)
			if err != nil {
				pl.err = fmt.Errorf("reading imagePullSecrets: %w", err)
			} else {
				pl.img, pl.err = p.fetch(ctx, ref, auth)
			}
			pl.took = time.Since(pl.start)
			if pl.err != nil {
				p.meter.Pulled(pl.took, 0, pl.err)
			} else {
				p.meter.Pulled(pl.took, pl.img.Size, nil)
			}
			p.mu.Lock()
			delete(p.active, key)
			p.mu.Unlock()
			close(pl.done)
		}()
	}
	p.mu.Unlock()
	go func() {
		select {
		case <-pl.done:
		case <-ctx.Done():
		}
		wake()
	}()
	return pl
}

// ensureImage returns the container's image, or nil after it has set the
// reason for which the container waits.
func (w *worker) ensureImage(ctx context.Context, c *container) *image.Image {
	spec := c.spec
	if pl := c.pull; pl != nil {
		select {
		case <-pl.done:
		default:
			return nil // the pull wakes us
		}
		c.pull = nil
		if pl.err == nil {
			c.pullBack = backoff{}
			w.pulling += pl.took
			w.event(c, v1.EventTypeNormal, "Pulled", "Successfully pulled image %q in %v (%v including waiting). Image size: %d bytes.",
				spec.Image, pl.took.Round(time.Millisecond), pl.took.Round(time.Millisecond), pl.img.Size)
			return pl.img
		}
		w.pullFailed(c, pl.err)
		return nil
	}
	if _, err := image.Normalize(spec.Image); err != nil {
		msg := fmt.Sprintf("Failed to apply default image tag %q: couldn't parse image name %q: %v", spec.Image, spec.Image, rootCause(err))
		if c.waiting.Reason != "InvalidImageName" {
			w.event(c, v1.EventTypeWarning, "InspectFailed", "%s", msg)
			w.event(c, v1.EventTypeWarning, "Failed", "Error: InvalidImageName")
		}
		c.wait("InvalidImageName", msg)
		return nil
	}
	policy := spec.ImagePullPolicy
	img, have := w.m.cfg.Images.Get(spec.Image)
	// What was imported by hand under this very name can't be pulled anew.
	imported := have && img.Pinned && len(img.RepoDigests) == 0
	if imported || have && policy != v1.PullAlways && w.mayUse(ctx, img, spec.Image) {
		w.event(c, v1.EventTypeNormal, "Pulled", "Container image %q already present on machine and can be accessed by the pod", spec.Image)
		return img
	}
	if policy == v1.PullNever {
		msg := fmt.Sprintf("Container image %q is not present with pull policy of Never", spec.Image)
		if c.waiting.Reason != "ErrImageNeverPull" {
			w.event(c, v1.EventTypeWarning, "ErrImageNeverPull", "%s", msg)
			w.event(c, v1.EventTypeWarning, "Failed", "Error: ErrImageNeverPull")
		}
		c.wait("ErrImageNeverPull", msg)
		c.retryAt = w.now().Add(backoffInitial) // it may be imported meanwhile
		return nil
	}
	if now := w.now(); !c.pullFailed.IsZero() {
		if left := c.pullBack.wait(c.pullFailed, now); left > 0 {
			msg := fmt.Sprintf("Back-off pulling image %q: ErrImagePull: %s", spec.Image, c.pullErr)
			if c.waiting.Reason != "ImagePullBackOff" {
				w.event(c, v1.EventTypeNormal, "BackOff", "Back-off pulling image %q", spec.Image)
				w.event(c, v1.EventTypeWarning, "Failed", "Error: ImagePullBackOff")
			}
			c.wait("ImagePullBackOff", msg)
			c.retryAt = now.Add(left)
			return nil
		}
	}
	w.event(c, v1.EventTypeNormal, "Pulling", "Pulling image %q", spec.Image)
	c.pull = w.m.pulls.get(w.m.ctx, spec.Image, w.pullSecrets(ctx), w.poke)
	return nil
}

// mayUse says whether the pod could have pulled an image that is there.
func (w *worker) mayUse(ctx context.Context, img *image.Image, ref string) bool {
	repository, err := image.Repository(ref)
	if err == nil {
		var ok bool
		ok, err = w.m.pulls.access.mayUse(img.ID, ref, repository, func() (ids []string, err error) {
			auth, err := image.Keychain(w.pullSecrets(ctx)...)
			if err != nil {
				return nil, nil // said when it is pulled
			}
			candidates, err := image.Candidates(auth, ref)
			for _, c := range candidates {
				id, cerr := image.CredentialID(ctx, c, ref)
				err = errors.Join(err, cerr)
				ids = append(ids, id)
			}
			return ids, err
		})
		if err == nil {
			return ok
		}
	}
	w.log.Warn("an image that is there is pulled all the same", "image", ref, "err", err)
	return false
}

// pullFailed shows the error for a moment; then ImagePullBackOff follows.
func (w *worker) pullFailed(c *container, err error) {
	now := w.now()
	c.pullErr = fmt.Sprintf("failed to pull and unpack image %q: %v", c.spec.Image, err)
	w.event(c, v1.EventTypeWarning, "Failed", "Failed to pull image %q: %v", c.spec.Image, err)
	w.event(c, v1.EventTypeWarning, "Failed", "Error: ErrImagePull")
	c.pullBack.next(now, now)
	c.pullFailed = now
	c.wait("ErrImagePull", c.pullErr)
	c.retryAt = now.Add(2 * time.Second)
}

// pullSecrets returns the contents of the pod's imagePullSecrets; missing ones
// are told by an event and left out, as kubelet does.
func (w *worker) pullSecrets(ctx context.Context) (out [][]byte) {
	var missing []string
	for _, ref := range w.pod.Spec.ImagePullSecrets {
		s, err := w.m.cfg.Objects.Secret(ctx, w.pod.Namespace, ref.Name)
		if err != nil {
			missing = append(missing, ref.Name)
			continue
		}
		if b := s.Data[v1.DockerConfigJsonKey]; len(b) > 0 {
			out = append(out, b)
		} else if b := s.Data[v1.DockerConfigKey]; len(b) > 0 {
			out = append(out, b)
		}
	}
	if len(missing) > 0 {
		w.eventPod(v1.EventTypeWarning, "FailedToRetrieveImagePullSecret",
			"Unable to retrieve some image pull secrets (%s); attempting to pull the image may not succeed.", strings.Join(missing, ", "))
	}
	return out
}

func rootCause(err error) error {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}
