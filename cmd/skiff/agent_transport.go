package main

import (
	"context"
	"io"
	"net/http"
)

// memberTransport is the way of a node to the API for as long as the node is a
// member. When member ends, requests under way end (a watch would go on to tell
// of pods that are deleted for the node's sake), and new ones fail at once with
// its cause.
type memberTransport struct {
	http.RoundTripper
	member context.Context
}

// WrappedRoundTripper lets client-go find the transport below.
func (t *memberTransport) WrappedRoundTripper() http.RoundTripper { return t.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (t *memberTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	if t.member.Err() != nil {
		if req.Body != nil {
			_ = req.Body.Close()
		}
		return nil, context.Cause(t.member)
	}
	ctx, cancel := context.WithCancel(req.Context())
	stop := context.AfterFunc(t.member, cancel)
	release := func() { stop(); cancel() }
	resp, err := t.RoundTripper.RoundTrip(req.WithContext(ctx))
	if err != nil {
		release()
		if t.member.Err() != nil && req.Context().Err() == nil {
			err = context.Cause(t.member)
		}
		return nil, err
	}
	resp.Request = req
	resp.Body = &boundBody{resp.Body, release}
	return resp, nil
}

// boundBody is a body whose request has a context of its own.
type boundBody struct {
	io.ReadCloser
	release func()
}

func (b *boundBody) Close() error {
	defer b.release()
	return b.ReadCloser.Close()
}
