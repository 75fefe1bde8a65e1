package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"
	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-sh/skiff/cluster/registry/podspec"
)

const (
	staticPodPath   = "static-pod-path"
	defaultManifest = "/etc/skiff/manifests"
	// othersManifests is where kubelets look by what kubeadm sets.
	othersManifests = "/etc/kubernetes/manifests"
)

func manifestFlag() cli.Flag {
	return stringFlag(staticPodPath, "folder of manifests of pods that this host runs by itself (static pods), which may come later; empty for none", defaultManifest)
}

// parseManifests reads manifestFlag.
func (o *hostOptions) parseManifests(c *cli.Context) error {
	dir := c.String(staticPodPath)
	if dir == "" {
		return nil
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return usagef("--%s %q: %v", staticPodPath, c.String(staticPodPath), err)
	}
	switch info, err := os.Stat(dir); {
	case err == nil && !info.IsDir():
		return usagef("--%s %s is no folder: put the manifest into one of its own", staticPodPath, dir)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return usagef("--%s: %v", staticPodPath, err)
	case err != nil && c.IsSet(staticPodPath):
		o.logger.Warn("the folder of static pods is not there yet", "folder", dir)
	}
	o.manifests = dir
	if !c.IsSet(staticPodPath) && hasFiles(othersManifests) {
		o.logger.Warn("manifests in "+othersManifests+" are not run: --"+staticPodPath+" is "+dir, "folder", othersManifests)
	}
	return nil
}

func hasFiles(dir string) bool {
	entries, err := os.ReadDir(dir)
	return err == nil && len(entries) > 0
}

// preparePod does for a static pod what the API does for others: defaults and
// checks, all complaints at once.
func preparePod(p *corev1.Pod) error {
	podspec.SetPodDefaults(p)
	errs := apivalidation.ValidateObjectMeta(&p.ObjectMeta, true, apivalidation.NameIsDNSSubdomain, field.NewPath("metadata"))
	errs = append(errs, podspec.ValidatePod(p)...)
	return errs.ToAggregate()
}
