package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ask asks once, over a connection of its own.
func ask(ctx context.Context, url string) (string, error) {
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answered %s", url, resp.Status)
	}
	return strings.TrimSpace(string(b)), err
}

// answers asks until so many different pods have answered.
func answers(ctx context.Context, url string, pods int) error {
	seen := map[string]bool{}
	for range 300 {
		text, err := ask(ctx, url)
		if err != nil {
			return err
		}
		if !seen[text] {
			seen[text] = true
			fmt.Println(text)
		}
		if len(seen) == pods {
			return nil
		}
	}
	return fmt.Errorf("only %d of %d replicas answered", len(seen), pods)
}

// traffic asks without a pause.
type traffic struct {
	stop   context.CancelFunc
	done   sync.WaitGroup
	ok     int
	failed []string
}

func startTraffic(url string) *traffic {
	ctx, cancel := context.WithCancel(context.Background())
	t := &traffic{stop: cancel}
	t.done.Go(func() {
		for ctx.Err() == nil {
			if _, err := ask(context.WithoutCancel(ctx), url); err != nil {
				t.failed = append(t.failed, err.Error())
			} else {
				t.ok++
			}
		}
	})
	return t
}

func (t *traffic) end() (ok int, failed []string) {
	t.stop()
	t.done.Wait()
	return t.ok, t.failed
}

// firstWrite says how long after since the API took a write again.
func (s *show) firstWrite(ctx context.Context, since time.Time) (time.Duration, error) {
	for i := 0; ; i++ {
		client, err := s.Client(ctx, "") // the servers that run now
		if err == nil {
			try, cancel := context.WithTimeout(ctx, time.Second)
			_, err = client.CoreV1().ConfigMaps("default").Create(try, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("demo-%d", i)}}, metav1.CreateOptions{})
			cancel()
		}
		if err == nil {
			return time.Since(since), nil
		}
		if time.Since(since) > 30*time.Second || ctx.Err() != nil {
			return 0, fmt.Errorf("no write after %v: %w", time.Since(since).Round(time.Second), err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// awaitReplaced says when no endpoint was on the node any more, and when as
// many pods as before were ready elsewhere.
func (s *show) awaitReplaced(ctx context.Context, node string, since time.Time) (gone, replaced time.Duration, err error) {
	client, err := s.Client(ctx, "")
	if err != nil {
		return 0, 0, err
	}
	for time.Since(since) < time.Minute {
		time.Sleep(50 * time.Millisecond)
		slices, err := client.DiscoveryV1().EndpointSlices("default").List(ctx, metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=hello"})
		if err != nil {
			return 0, 0, err
		}
		here, elsewhere := 0, 0
		for _, slice := range slices.Items {
			for _, e := range slice.Endpoints {
				if e.Conditions.Ready == nil || !*e.Conditions.Ready {
					continue
				}
				if e.NodeName != nil && *e.NodeName == node {
					here++
				} else {
					elsewhere++
				}
			}
		}
		if here == 0 && gone == 0 {
			gone = time.Since(since)
		}
		if here == 0 && elsewhere >= 4 {
			return gone, time.Since(since), nil
		}
	}
	return 0, 0, fmt.Errorf("the pods of %s were not replaced within a minute", node)
}
