package core

import (
	"net/http"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/skiff-sh/skiff/cluster/registry"
	"github.com/skiff-sh/skiff/cluster/registry/nodeproxy"
)

// PodConfig is what the subresources of pods need.
type PodConfig struct {
	// Nodes reaches the API of the node that runs a pod.
	Nodes nodeproxy.NodeAccess
	// ProxyTransport carries pods/proxy and services/proxy to pod addresses.
	// Nil makes one that does not verify HTTPS backends, as those of pods are
	// rarely signed by a known CA.
	ProxyTransport http.RoundTripper
}

// addPodDefaults registers the defaults of pods, pod templates and replication
// controllers.
func addPodDefaults(s *runtime.Scheme) error { return nil }

// podStorage adds pods, podtemplates and replicationcontrollers with their
// subresources to m.
func podStorage(o registry.Options, cfg Config, m map[string]rest.Storage) error { return nil }
