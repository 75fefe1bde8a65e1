package binary

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/skiff-sh/skiff/cluster/upgrade/order"
)

// HTTP is the Leader behind the API of any server.
type HTTP struct {
	// Client picks the server, and shows this member's certificate. It must not
	// limit how long an answer takes: binaries are large.
	Client *http.Client
	// Base is the URL before upgrade.Path.
	Base string
}

// answerLimit is how long an answer may take, a binary's apart, and how long one
// may come without any content.
const answerLimit = 15 * time.Second

// Order implements Leader.
func (h *HTTP) Order(ctx context.Context) (*order.Order, error) {
	b, err := h.small(ctx, http.MethodGet, nil)
	if err != nil || len(bytes.TrimSpace(b)) == 0 {
		return nil, err
	}
	var o order.Order
	if err := json.Unmarshal(b, &o); err != nil {
		return nil, fmt.Errorf("order: %w", err)
	}
	if o.ID == "" {
		return nil, nil
	}
	return &o, nil
}

// Report implements Leader.
func (h *HTTP) Report(ctx context.Context, r order.Report) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = h.small(ctx, http.MethodPost, b)
	return err
}

func (h *HTTP) small(ctx context.Context, method string, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, h.Base+order.MemberPath, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := h.Client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	switch {
	case err != nil:
		return nil, err
	case method == http.MethodGet && resp.StatusCode == http.StatusNotFound:
		return nil, nil
	case resp.StatusCode/100 != 2:
		return nil, refused(resp, b)
	}
	return b, nil
}

// Binary implements Leader. The content ends with an error when nothing comes for
// a while.
func (h *HTTP) Binary(ctx context.Context, sum string, offset int64) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	watch := time.AfterFunc(answerLimit, func() { cancel(fmt.Errorf("nothing came for %s", answerLimit)) })
	body, err := h.open(ctx, sum, offset)
	if err != nil {
		watch.Stop()
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		cancel(nil)
		return nil, err
	}
	return &watched{body, watch, func() { watch.Stop(); cancel(nil) }}, nil
}

func (h *HTTP) open(ctx context.Context, sum string, offset int64) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, h.Base+order.BinaryPath+sum, nil)
	if err != nil {
		return nil, err
	}
	if offset > 0 {
		req.Header.Set("Range", "bytes="+strconv.FormatInt(offset, 10)+"-")
	}
	resp, err := h.Client.Do(req)
	if err != nil {
		return nil, err
	}
	switch {
	case resp.StatusCode == http.StatusPartialContent && strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", offset)):
		return resp.Body, nil
	case resp.StatusCode == http.StatusOK: // all of it
		if _, err := io.CopyN(io.Discard, resp.Body, offset); err != nil {
			return nil, errors.Join(err, resp.Body.Close())
		}
		return resp.Body, nil
	}
	b, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	return nil, errors.Join(refused(resp, b), resp.Body.Close())
}

func refused(resp *http.Response, body []byte) error {
	var status struct{ Message string }
	if json.Unmarshal(body, &status) != nil || status.Message == "" {
		status.Message = first(body)
	}
	return fmt.Errorf("%s answers %s: %s", resp.Request.URL.Path, resp.Status, status.Message)
}

// watched is a body that must not be silent.
type watched struct {
	io.ReadCloser
	watch *time.Timer
	end   func()
}

func (w *watched) Read(b []byte) (int, error) {
	n, err := w.ReadCloser.Read(b)
	if n > 0 {
		w.watch.Reset(answerLimit)
	}
	return n, err
}

func (w *watched) Close() error {
	w.end()
	return w.ReadCloser.Close()
}
