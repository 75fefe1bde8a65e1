package controller

import (
	"errors"
	"log/slog"

	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/record"
)

// Config is what every controller gets.
type Config struct {
	// Client talks to the API server; it should not be rate-limited.
	Client kubernetes.Interface
	// Informers is shared by all controllers of a term. Its owner starts it
	// after every New and shuts it down after every Run.
	Informers informers.SharedInformerFactory
	// Events receives what users should see. Its source names the controller.
	Events record.EventRecorder
	// Logger receives the rest.
	Logger *slog.Logger
}

// Check returns an error naming what is missing, and fills in what may be.
func (c *Config) Check() error {
	switch {
	case c.Client == nil:
		return errors.New("config: Client is missing")
	case c.Informers == nil:
		return errors.New("config: Informers is missing")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Events == nil {
		c.Events = quietRecorder
	}
	return nil
}

// quietRecorder drops every event.
var quietRecorder record.EventRecorder = &record.FakeRecorder{}
