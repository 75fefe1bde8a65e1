// Package imagegc removes images that no container uses, the one first that was not
// used for the longest time: when the file system of the images fills up, when an
// image is older than it may be, and at once when the node is short of disk space.
//
// Images that are pinned, that a container is mounted from or that a pod of this node
// names are never removed. When an image was last used is kept by the image store,
// across restarts.
package imagegc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/skiff-sh/skiff/node/image"
)

// Policy says when images go.
type Policy struct {
	High, Low int           // percent of the disk: when more than High is used, images go until Low is
	MinAge    time.Duration // since it was pulled: younger ones stay
	MaxAge    time.Duration // since it was used last: older ones go; 0: never for their age
}

// Default is kubelet's policy.
var Default = Policy{High: 85, Low: 80, MinAge: 2 * time.Minute}

// Check names the flag that is wrong.
func (p Policy) Check() error {
	switch {
	case p.High < 0 || p.High > 100:
		return fmt.Errorf("--image-gc-high-threshold %d: want 0 to 100", p.High)
	case p.Low < 0 || p.Low > 100:
		return fmt.Errorf("--image-gc-low-threshold %d: want 0 to 100", p.Low)
	case p.Low >= p.High:
		return fmt.Errorf("--image-gc-low-threshold %d: want less than --image-gc-high-threshold, which is %d", p.Low, p.High)
	case p.MinAge < 0:
		return fmt.Errorf("--minimum-image-ttl-duration %s: want 0 or more", p.MinAge)
	case p.MaxAge < 0:
		return fmt.Errorf("--image-maximum-gc-age %s: want 0, for never, or more", p.MaxAge)
	case p.MaxAge > 0 && p.MaxAge <= p.MinAge:
		return fmt.Errorf("--image-maximum-gc-age %s: want more than --minimum-image-ttl-duration, which is %s", p.MaxAge, p.MinAge)
	}
	return nil
}

// Store is what the collector needs of an *image.Store.
type Store interface {
	List() ([]*image.Image, error)
	LastUsed(*image.Image) time.Time
	InUse() (map[string]bool, error)
	Prune(ctx context.Context, keep func(*image.Image) bool) ([]*image.Image, error)
}

// Collector removes images. Its methods must not run at the same time.
type Collector struct {
	Policy Policy
	Store  Store
	// Wanted returns the names and IDs of images that pods of this node have.
	Wanted func() []string
	// Disk returns the free bytes and the size of the images' file system.
	Disk   func() (free, size int64, err error)
	Event  func(kind, reason, message string) // about the Node
	Logger *slog.Logger
	// Removed, unless nil, is told of each image that went, for "age" or "space".
	Removed func(reason string)
}

// candidate is an image that may go.
type candidate struct {
	img  *image.Image
	used time.Time
}

// candidates are the images that may go, in their order.
func (c *Collector) candidates(now time.Time) ([]candidate, error) {
	list, err := c.Store.List()
	if err != nil {
		return nil, err
	}
	inUse, err := c.Store.InUse()
	if err != nil {
		return nil, err
	}
	wanted := map[string]bool{}
	for _, w := range c.Wanted() {
		wanted[w] = true
		if full, err := image.Normalize(w); err == nil {
			wanted[full] = true
		}
	}
	named := func(i *image.Image) bool {
		return wanted[i.ID] || slices.ContainsFunc(slices.Concat(i.RepoTags, i.RepoDigests), func(n string) bool { return wanted[n] })
	}
	var out []candidate
	for _, i := range list {
		if i.Pinned || inUse[i.ID] || named(i) {
			continue
		}
		used := c.Store.LastUsed(i)
		if used.After(now) { // the clock was set back
			used = now
		}
		out = append(out, candidate{i, used})
	}
	slices.SortStableFunc(out, func(a, b candidate) int {
		return cmp.Or(a.used.Compare(b.used), a.img.PulledAt.Compare(b.img.PulledAt), cmp.Compare(a.img.ID, b.img.ID))
	})
	return out, nil
}

// young says that a pod may just be about to start from the image.
func (c *Collector) young(i *image.Image, now time.Time) bool {
	age := now.Sub(i.PulledAt)
	return age >= 0 && age < c.Policy.MinAge
}

// remove removes one image, unless somebody has begun to use it; it says whether it
// is gone.
func (c *Collector) remove(ctx context.Context, i *image.Image, reason, why string) (bool, error) {
	gone, err := c.Store.Prune(ctx, func(o *image.Image) bool { return o.ID != i.ID })
	for _, g := range gone {
		c.Logger.Info("removed an image", "image", nameOf(g), "size", g.Size, "why", why)
		if c.Removed != nil {
			c.Removed(reason)
		}
	}
	if err != nil {
		return false, fmt.Errorf("removing image %s: %w", nameOf(i), err)
	}
	return len(gone) > 0, nil
}

func nameOf(i *image.Image) string {
	for _, names := range [][]string{i.RepoTags, i.RepoDigests} {
		if len(names) > 0 {
			return names[0]
		}
	}
	return i.ID
}

// Collect removes what the policy says and returns how many images.
func (c *Collector) Collect(ctx context.Context, now time.Time) (removed int, err error) {
	list, err := c.candidates(now)
	if err != nil {
		return 0, err
	}
	if c.Policy.MaxAge > 0 {
		var errs []error
		list = slices.DeleteFunc(list, func(k candidate) bool {
			if now.Sub(k.used) <= c.Policy.MaxAge {
				return false
			}
			gone, err := c.remove(ctx, k.img, "age", "not used for "+now.Sub(k.used).Round(time.Second).String())
			errs = append(errs, err)
			if gone {
				removed++
			}
			return gone
		})
		if err := errors.Join(errs...); err != nil {
			return removed, err
		}
	}
	free, size, err := c.Disk()
	if err != nil {
		return removed, err
	}
	if size <= 0 {
		const text = "invalid capacity 0 on image filesystem"
		c.Event(v1.EventTypeWarning, "InvalidDiskCapacity", text)
		return removed, errors.New(text)
	}
	used := percentUsed(free, size)
	if used < c.Policy.High {
		return removed, nil
	}
	want, before := size/100*int64(100-c.Policy.Low), free
	for _, k := range list {
		if free >= want || ctx.Err() != nil {
			break
		}
		if c.young(k.img, now) {
			continue
		}
		gone, err := c.remove(ctx, k.img, "space", fmt.Sprintf("%d%% of the disk is used", used))
		if err != nil {
			return removed, err
		}
		if gone {
			removed++
		}
		// Layers are shared, so an image's size says little of what its end gives.
		if free, size, err = c.Disk(); err != nil {
			return removed, err
		}
	}
	if free < want {
		text := fmt.Sprintf("Insufficient free disk space on the node's image filesystem (%d%% of %s used). "+
			"Failed to free sufficient space by deleting unused images (freed %d bytes). "+
			"Investigate disk usage, as it could be used by active images, logs, volumes, or other data.",
			used, resource.NewQuantity(size, resource.BinarySI).String(), max(0, free-before))
		c.Event(v1.EventTypeWarning, "FreeDiskSpaceFailed", text)
		return removed, errors.New(text)
	}
	return removed, nil
}

func percentUsed(free, size int64) int { return 100 - int(float64(free)*100/float64(size)) }

// Full says that more of the disk is used than the policy allows.
func (c *Collector) Full() bool {
	free, size, err := c.Disk()
	return err == nil && size > 0 && percentUsed(free, size) >= c.Policy.High
}

// RemoveUnused removes all images that may go, whatever there is room for, and returns
// how many.
func (c *Collector) RemoveUnused(ctx context.Context, now time.Time) (removed int, err error) {
	list, err := c.candidates(now)
	if err != nil {
		return 0, err
	}
	var errs []error
	for _, k := range list {
		if c.young(k.img, now) || ctx.Err() != nil {
			continue
		}
		gone, err := c.remove(ctx, k.img, "space", "the node is short of disk space")
		errs = append(errs, err)
		if gone {
			removed++
		}
	}
	return removed, errors.Join(errs...)
}
