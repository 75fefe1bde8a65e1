package nodeproxy

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	deleteTimeout = 15 * time.Second
	maxAnswer     = 4 << 10
)

// Volumes asks nodes to delete the folders of volumes.
type Volumes struct {
	// Nodes finds the nodes.
	Nodes NodeAccess
}

// DeleteVolume returns nil when the node called node has no folder of that
// volume any more. The node refuses while one of its pods has it.
func (v Volumes) DeleteVolume(ctx context.Context, node, volume string) error {
	ctx, cancel := context.WithTimeout(ctx, deleteTimeout)
	defer cancel()
	e, err := v.Nodes.NodeAPI(ctx, node)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodDelete, e.URL.JoinPath("skiff", "volumes", url.PathEscape(volume)).String(), nil)
	if err != nil {
		return fmt.Errorf("node %s: %w", node, err)
	}
	resp, err := e.Transport.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("node %s: %w", node, err)
	}
	defer resp.Body.Close()
	answer, _ := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("node %s: %s: %s", node, resp.Status, strings.TrimSpace(string(answer)))
	}
	return nil
}
