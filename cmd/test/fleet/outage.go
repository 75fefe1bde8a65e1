package fleet

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const outageTime = 5 * time.Second

// outage stops all servers and starts them again: every agent loses its server at
// the same moment, and all come back to the first ones that serve. It measures
// how long that takes them: each has to see that its Node was changed, and to
// correct it.
func (f *fleet) outage(ctx context.Context) error {
	all := func(do func(*server) error) error {
		var g errgroup.Group
		for _, s := range f.servers {
			g.Go(func() error { return do(s) })
		}
		return g.Wait()
	}
	if err := all((*server).down); err != nil {
		return err
	}
	sleep(ctx, outageTime)
	begin := time.Now()
	if err := all(func(s *server) error { return s.up(ctx) }); err != nil {
		return err
	}
	served := time.Since(begin)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for _, h := range f.hosts {
		g.Go(func() error {
			return f.await(gctx, settleLimit, "a change of node "+h.name, func() error {
				_, err := f.client.CoreV1().Nodes().Patch(gctx, h.name, types.MergePatchType, []byte(`{"status":{"nodeInfo":{"kubeletVersion":"wrong"}}}`), metav1.PatchOptions{}, "status")
				return err
			})
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	err := f.await(ctx, settleLimit, "all agents work again", func() error {
		list, err := f.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		away := 0
		for _, n := range list.Items {
			if n.Status.NodeInfo.KubeletVersion != kubeletVersion {
				away++
			}
		}
		if away > 0 {
			return fmt.Errorf("%d do not", away)
		}
		return nil
	})
	if err != nil {
		return err
	}
	f.report.Back = time.Since(begin).Seconds()
	f.Say("all servers stopped for %s and started again: they serve after %s, all agents work after %.1fs", outageTime, served.Round(100*time.Millisecond), f.report.Back)
	return f.await(ctx, settleLimit, "everything is as it should be after the outage", func() error { return f.right(ctx) })
}
