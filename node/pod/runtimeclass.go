package pod

import (
	"context"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// runtimeHandler is what runs all pods: the shim, which is runc's library. It goes
// by runc's name, which is that of RuntimeClasses written for other nodes.
const runtimeHandler = "runc"

// checkHandler looks up the pod's RuntimeClass before its sandbox is made. One
// that does not exist yet is looked for again with the sandbox.
func (w *worker) checkHandler(ctx context.Context) error {
	name := w.pod.Spec.RuntimeClassName
	if name == nil || *name == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	class, err := w.m.cfg.Client.NodeV1().RuntimeClasses().Get(ctx, *name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("looking up the RuntimeClass: %w", err)
	}
	if class.Handler != runtimeHandler {
		return fmt.Errorf("no runtime for %q is configured, the handler of RuntimeClass %q: this node has %q", class.Handler, *name, runtimeHandler)
	}
	return nil
}
