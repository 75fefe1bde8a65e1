package node

import (
	"context"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"

	"github.com/skiff-sh/skiff/node/static"
)

// readManifests opens the folder of static pods, and makes what shows them in
// the API. Without a folder, what is left of earlier static pods goes.
func (a *Agent) readManifests(recorder record.EventRecorder) (err error) {
	a.mirrors = static.NewMirrors(static.MirrorConfig{Client: a.client, Node: a.self.node,
		Pods: func() []*v1.Pod { return a.pods.StaticPods() }, Logger: a.cfg.Logger})
	records := filepath.Join(a.cfg.DataDir, "static")
	if a.cfg.ManifestDir == "" {
		return os.RemoveAll(records)
	}
	a.manifests, err = static.Open(static.Config{Dir: a.cfg.ManifestDir, Records: records, Node: a.cfg.Name, Prepare: a.cfg.PreparePod, Logger: a.cfg.Logger,
		Report: func(file string, err error) {
			node := &v1.ObjectReference{Kind: "Node", Name: a.cfg.Name, UID: types.UID(a.cfg.Name)}
			recorder.Eventf(node, v1.EventTypeWarning, "InvalidManifest", "Static pod manifest %s: %v", file, err)
		}})
	return err
}

// runManifests begins to run the static pods. It comes before the pods of the
// API, for which it does not wait.
func (a *Agent) runManifests(ctx context.Context, g *errgroup.Group) error {
	var pods []*v1.Pod
	if a.manifests != nil {
		pods = a.manifests.Begin()
	}
	if err := a.pods.StartStatic(ctx, pods); err != nil {
		return err
	}
	if a.manifests != nil {
		g.Go(func() error { return a.manifests.Run(ctx, a.pods) })
	}
	g.Go(func() error { return a.mirrors.Run(ctx) })
	return nil
}

// keepStatic notes the status of a static pod.
func (a *Agent) keepStatic(p *v1.Pod) error {
	if a.manifests == nil {
		return nil
	}
	return a.manifests.Keep(p)
}
