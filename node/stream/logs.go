package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/skiff-sh/skiff/node/logs"
	"github.com/skiff-sh/skiff/node/pod"
	"github.com/skiff-sh/skiff/node/runtime"
)

// logOptions reads the query as the API's PodLogOptions are written.
func logOptions(q url.Values) (o logs.Options, previous bool, stream string, err error) {
	boolean := func(name string) bool {
		s := q.Get(name)
		if s == "" {
			return false
		}
		b, perr := strconv.ParseBool(s)
		if perr != nil {
			err = errors.Join(err, fmt.Errorf("%s: %q is not a boolean", name, s))
		}
		return b
	}
	number := func(name string, least int64) *int64 {
		s := q.Get(name)
		if s == "" {
			return nil
		}
		n, perr := strconv.ParseInt(s, 10, 64)
		if perr != nil || n < least {
			err = errors.Join(err, fmt.Errorf("%s: %q must be a number of at least %d", name, s, least))
		}
		return &n
	}
	o = logs.Options{Follow: boolean("follow"), Timestamps: boolean("timestamps"), Tail: number("tailLines", 0), Limit: number("limitBytes", 1)}
	previous = boolean("previous")
	if n := number("sinceSeconds", 1); n != nil {
		o.Since = time.Now().Add(-time.Duration(*n) * time.Second)
	}
	if s := q.Get("sinceTime"); s != "" {
		t, perr := time.Parse(time.RFC3339, s)
		if perr != nil {
			err = errors.Join(err, fmt.Errorf("sinceTime: %w", perr))
		}
		o.Since = t
	}
	switch stream = q.Get("stream"); stream {
	case "", v1.LogStreamAll, v1.LogStreamStdout, v1.LogStreamStderr:
	default:
		err = errors.Join(err, fmt.Errorf("stream: %q is not one of All, Stdout, Stderr", stream))
	}
	return o, previous, stream, err
}

func (s *Server) logs(w http.ResponseWriter, r *http.Request) {
	t, ok := s.find(w, r)
	if !ok {
		return
	}
	o, previous, which, err := logOptions(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	path, err := logFile(t, previous)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	var ended <-chan struct{}
	if o.Follow {
		if previous || !t.ctr.Running {
			o.Follow = false // there is nothing to come
		} else {
			ended = whenEnded(ctx, t.view.Sandbox, t.ctr.ID)
		}
	}
	out := &flusher{w: w}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if o.Follow {
		w.WriteHeader(http.StatusOK)
		out.flush()
	}
	var stdout, stderr io.Writer = out, out
	switch which {
	case v1.LogStreamStdout:
		stderr = nil
	case v1.LogStreamStderr:
		stdout = nil
	}
	if err := logs.Read(ctx, path, o, stdout, stderr, ended); err != nil && ctx.Err() == nil {
		if out.wrote || o.Follow {
			s.cfg.Logger.Debug("streaming a log", "err", err)
			return
		}
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}

// logFile chooses the attempt; its errors are those that users know.
func logFile(t target, previous bool) (string, error) {
	name := t.view.Pod.Name
	if previous {
		if t.ctr.PrevLog == "" || missing(t.ctr.PrevLog) {
			return "", fmt.Errorf("previous terminated container %q in pod %q not found", t.name, name)
		}
		return t.ctr.PrevLog, nil
	}
	st := statusOf(t.view, t.name)
	switch {
	case t.ctr.LogPath != "" && !missing(t.ctr.LogPath):
		return t.ctr.LogPath, nil
	case st != nil && st.State.Waiting != nil && (st.State.Waiting.Reason == "ErrImagePull" || st.State.Waiting.Reason == "ImagePullBackOff"):
		return "", fmt.Errorf("container %q in pod %q is waiting to start: %s", t.name, name, map[string]string{
			"ErrImagePull": "image can't be pulled", "ImagePullBackOff": "trying and failing to pull image"}[st.State.Waiting.Reason])
	case st != nil && st.State.Waiting != nil:
		return "", fmt.Errorf("container %q in pod %q is waiting to start: %s", t.name, name, st.State.Waiting.Reason)
	case t.ctr.LogPath != "":
		return "", fmt.Errorf("the log of container %q in pod %q is gone", t.name, name)
	}
	return "", fmt.Errorf("container %q in pod %q is not available", t.name, name)
}

func missing(path string) bool { return !logs.Exists(path) }

func statusOf(v *pod.View, name string) *v1.ContainerStatus {
	for _, list := range [][]v1.ContainerStatus{v.Pod.Status.InitContainerStatuses, v.Pod.Status.ContainerStatuses, v.Pod.Status.EphemeralContainerStatuses} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}

// whenEnded returns a channel that closes when a container has ended.
func whenEnded(ctx context.Context, sb pod.Sandbox, id string) <-chan struct{} {
	done := make(chan struct{})
	events := sb.Events(ctx)
	go func() {
		defer close(done)
		// It may have ended between the view and the subscription, and been forgotten
		// for its next attempt.
		if !slices.ContainsFunc(sb.Containers(), func(c runtime.ContainerStatus) bool { return c.ID == id && c.State != runtime.Exited }) {
			return
		}
		for ev := range events {
			if ev.Container.ID == id && ev.Type != runtime.ContainerStarted {
				return
			}
		}
	}()
	return done
}

// flusher sends each line on its way at once.
type flusher struct {
	w     http.ResponseWriter
	wrote bool
}

func (f *flusher) Write(p []byte) (int, error) {
	f.wrote = true
	n, err := f.w.Write(p)
	f.flush()
	return n, err
}

func (f *flusher) flush() {
	if fl, ok := f.w.(http.Flusher); ok {
		fl.Flush()
	}
}
