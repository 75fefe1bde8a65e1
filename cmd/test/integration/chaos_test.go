//go:build integration

package integration

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	chaosKills = 20
	// chaosSeedEnv repeats a run with the seed that it printed, as far as the
	// machine's timing allows.
	chaosSeedEnv = "SKIFF_CHAOS_SEED"
)

var chaosSetup = `apiVersion: v1
kind: Service
metadata: {name: steady}
spec:
  type: NodePort
  selector: {app: steady}
  ports: [{port: 80, targetPort: 8080, nodePort: 30083}]
---
apiVersion: v1
kind: Service
metadata: {name: rolled}
spec:
  type: NodePort
  selector: {app: rolled}
  ports: [{port: 80, targetPort: 8080, nodePort: 30084}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: volume}
data: {n: "0"}
---
` + chaosDeployment + `---
apiVersion: v1
kind: Pod
metadata: {name: reader}
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{name: v, configMap: {name: volume}}]
  containers:
  - name: box
    image: skiff.test/busybox:1.36
    command: ["sleep", "100000"]
    volumeMounts: [{name: v, mountPath: /v}]
`

var chaosDeployment = deployment("steady", 2) + "---\n" + deployment("rolled", 3) + "---\n" + deployment("scaled", 2)

func deployment(name string, replicas int) string {
	return fmt.Sprintf(`apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s}
spec:
  replicas: %[2]d
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: hello
        image: skiff.local/hello:v1
`, name, replicas)
}

// chaos is work for a server that is killed again and again. What its methods
// have done was acknowledged by the server.
type chaos struct {
	*server
	api  *kubernetes.Clientset
	seed uint64

	written []string        // ConfigMaps that must be there
	bare    map[string]bool // pods that must be there, without a controller
	volume  int             // what the volume's ConfigMap says
	calls   int
	mu      sync.Mutex // guards calls
}

// insist repeats a request until the server has answered it.
func (c *chaos) insist(what string, fn func(ctx context.Context) error, fine ...func(error) bool) error {
	for deadline := time.Now().Add(5 * time.Minute); ; { // a slow server is killed before it answers
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		err := fn(ctx)
		cancel()
		if err == nil || slices.ContainsFunc(fine, func(f func(error) bool) bool { return f(err) }) {
			c.mu.Lock()
			c.calls++
			c.mu.Unlock()
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: %w", what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// patch is a merge patch of a deployment.
func (c *chaos) patch(name, patch string) error {
	return c.insist("patch "+name, func(ctx context.Context) error {
		_, err := c.api.AppsV1().Deployments("default").Patch(ctx, name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
		return err
	})
}

func (c *chaos) scale(n int) error {
	return c.patch("scaled", fmt.Sprintf(`{"spec":{"replicas":%d}}`, n))
}

func (c *chaos) roll(version int) error {
	return c.patch("rolled", fmt.Sprintf(`{"spec":{"template":{"spec":{"containers":[{"name":"hello","image":"skiff.local/hello:v%d"}]}}}}`, version))
}

func (c *chaos) write() error {
	name := fmt.Sprintf("written-%d", len(c.written))
	err := c.insist("create "+name, func(ctx context.Context) error {
		_, err := c.api.CoreV1().ConfigMaps("default").Create(ctx, &v1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		return err
	}, apierrors.IsAlreadyExists)
	if err == nil {
		c.written = append(c.written, name)
	}
	return err
}

func (c *chaos) changeVolume() error {
	err := c.insist("change the volume", func(ctx context.Context) error {
		_, err := c.api.CoreV1().ConfigMaps("default").Patch(ctx, "volume", types.MergePatchType,
			fmt.Appendf(nil, `{"data":{"n":"%d"}}`, c.volume+1), metav1.PatchOptions{})
		return err
	})
	if err == nil {
		c.volume++
	}
	return err
}

func (c *chaos) createPod(name string) error {
	grace := int64(1)
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1.PodSpec{TerminationGracePeriodSeconds: &grace, Containers: []v1.Container{{
		Name: "box", Image: "skiff.test/busybox:1.36", Command: []string{"sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.2; done"}}}}}
	err := c.insist("create "+name, func(ctx context.Context) error {
		_, err := c.api.CoreV1().Pods("default").Create(ctx, p, metav1.CreateOptions{})
		return err
	}, apierrors.IsAlreadyExists)
	if err == nil {
		c.bare[name] = true
	}
	return err
}

func (c *chaos) deletePod(name string) error {
	err := c.insist("delete "+name, func(ctx context.Context) error {
		return c.api.CoreV1().Pods("default").Delete(ctx, name, metav1.DeleteOptions{})
	}, apierrors.IsNotFound)
	if err == nil {
		delete(c.bare, name)
	}
	return err
}

// upTo is a random time below longest.
func upTo(rnd *rand.Rand, longest time.Duration) time.Duration {
	return time.Duration(rnd.Int64N(int64(longest)))
}

// work runs everything at once until ctx ends.
func (c *chaos) work(ctx context.Context, t *testing.T) *sync.WaitGroup {
	wg := &sync.WaitGroup{}
	repeat := func(n uint64, longest time.Duration, fn func(rnd *rand.Rand) error) {
		rnd := rand.New(rand.NewPCG(c.seed, n))
		wg.Go(func() {
			for ctx.Err() == nil {
				if err := fn(rnd); err != nil {
					t.Errorf("a request was never answered: %v", err)
					return
				}
				select {
				case <-ctx.Done():
				case <-time.After(upTo(rnd, longest)):
				}
			}
		})
	}
	repeat(1, 1500*time.Millisecond, func(rnd *rand.Rand) error { return c.scale(rnd.IntN(6)) })
	repeat(2, 4*time.Second, func(rnd *rand.Rand) error { return c.roll(1 + rnd.IntN(2)) })
	repeat(3, 20*time.Millisecond, func(*rand.Rand) error { return c.write() })
	repeat(4, 300*time.Millisecond, func(*rand.Rand) error { return c.changeVolume() })
	pods := 0
	repeat(5, 800*time.Millisecond, func(rnd *rand.Rand) error {
		if len(c.bare) > rnd.IntN(6) {
			for name := range c.bare {
				return c.deletePod(name)
			}
		}
		pods++
		return c.createPod(fmt.Sprintf("bare-%d", pods))
	})
	return wg
}

// TestChaos: whatever happens to be under way when skiff is killed, once it is
// left alone everything is as was asked for, nothing is left of what is gone,
// and what ran all the time was not disturbed.
func TestChaos(t *testing.T) {
	c := &chaos{server: ownServer(t, "skiff-chaos", 7), seed: rand.Uint64(), bare: map[string]bool{}}
	if s := os.Getenv(chaosSeedEnv); s != "" {
		var err error
		if c.seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("%s: %v", chaosSeedEnv, err)
		}
	}
	t.Logf("%s=%d repeats this run", chaosSeedEnv, c.seed)
	cfg, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	cfg.QPS = -1
	if c.api, err = kubernetes.NewForConfig(cfg); err != nil {
		t.Fatal(err)
	}
	c.apply(t, chaosSetup)
	c.kubectl(t, "rollout", "status", "deployment/steady", "--timeout=240s")
	c.kubectl(t, "wait", "--for=condition=Ready", "pod/reader", "--timeout=240s")
	const ids = `jsonpath={range .items[*]}{.metadata.uid} {.status.podIP} {.status.containerStatuses[0].containerID}{"\n"}{end}`
	undisturbed := c.kubectl(t, "get", "pods", "-l", "app=steady", "-o", ids)
	answering(t, "http://"+c.Host.Addr+":30083/")
	steady := startLoad("http://"+c.Host.Addr+":30083/", 1)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	working := c.work(ctx, t)
	rnd := rand.New(rand.NewPCG(c.seed, 0))
	for i := range chaosKills {
		longest := 3 * time.Second
		if i%3 == 2 {
			longest = 600 * time.Millisecond // while it is still starting
		}
		delay := upTo(rnd, longest)
		select {
		case <-c.Exited():
			t.Fatalf("the server ended by itself after kill %d", i)
		case <-time.After(delay):
		}
		if err := c.Kill(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(upTo(rnd, 100*time.Millisecond))
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	working.Wait()
	if t.Failed() {
		return
	}
	t.Logf("%d kills, %d acknowledged requests, %d of them new ConfigMaps", chaosKills, c.calls, len(c.written))

	began := time.Now()
	eventually(t, 40*time.Second, func() error {
		pods, err := c.converged()
		if err != nil {
			return err
		}
		return leftovers(c.server, pods)
	})
	t.Logf("converged %v after the last request", time.Since(began).Round(100*time.Millisecond))
	steady.end(t, "all kills")
	if now := c.kubectl(t, "get", "pods", "-l", "app=steady", "-o", ids); now != undisturbed {
		t.Errorf("pods that nobody touched, before:\n%s\nand after:\n%s", undisturbed, now)
	}
	for _, port := range []string{":30083/", ":30084/"} {
		eventually(t, 10*time.Second, func() error { // its program may be starting
			_, err := visit("http://" + c.Host.Addr + port)
			return err
		})
	}
	eventually(t, 10*time.Second, func() error {
		out, err := c.try("", "exec", "reader", "--", "cat", "/v/n")
		if err == nil && strings.TrimSpace(out) != strconv.Itoa(c.volume) {
			err = fmt.Errorf("the volume has %q, its ConfigMap %d", out, c.volume)
		}
		return err
	})
}

// converged says what is not yet as was asked for, and lists the pods.
func (c *chaos) converged() ([]v1.Pod, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	maps, err := c.api.CoreV1().ConfigMaps("default").List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	have := map[string]bool{}
	for _, m := range maps.Items {
		have[m.Name] = true
	}
	for _, name := range c.written {
		if !have[name] {
			return nil, fmt.Errorf("ConfigMap %s was acknowledged and is not there", name)
		}
	}
	deployments, err := c.api.AppsV1().Deployments("default").List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	want := len(c.bare) + 1
	for _, d := range deployments.Items {
		n, st := *d.Spec.Replicas, d.Status
		want += int(n)
		if st.ObservedGeneration != d.Generation || st.Replicas != n || st.UpdatedReplicas != n || st.ReadyReplicas != n || st.AvailableReplicas != n {
			return nil, fmt.Errorf("deployment %s, generation %d, %d replicas: %+v", d.Name, d.Generation, n, st)
		}
	}
	pods, err := c.api.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	addrs := map[string]string{}
	for _, p := range pods.Items {
		if len(p.OwnerReferences) == 0 && p.Name != "reader" && !c.bare[p.Name] {
			return nil, fmt.Errorf("pod %s was deleted and is there", p.Name)
		}
		if err := healthy(&p); err != nil {
			return nil, err
		}
		if other := addrs[p.Status.PodIP]; other != "" {
			return nil, fmt.Errorf("pods %s and %s both have the address %s", other, p.Name, p.Status.PodIP)
		}
		addrs[p.Status.PodIP] = p.Name
	}
	if len(pods.Items) != want {
		return nil, fmt.Errorf("%d pods, want %d", len(pods.Items), want)
	}
	for _, service := range []string{"steady", "rolled"} {
		if err := c.listed(ctx, service, pods.Items); err != nil {
			return nil, err
		}
	}
	return pods.Items, nil
}

// healthy says that a pod runs and never did anything else.
func healthy(p *v1.Pod) error {
	if p.DeletionTimestamp != nil || p.Status.Phase != v1.PodRunning || len(p.Status.ContainerStatuses) != 1 {
		return fmt.Errorf("pod %s: deletion %v, phase %s, %+v", p.Name, p.DeletionTimestamp, p.Status.Phase, p.Status.ContainerStatuses)
	}
	if st := p.Status.ContainerStatuses[0]; !st.Ready || st.RestartCount != 0 {
		return fmt.Errorf("pod %s: ready %v, %d restarts: %+v", p.Name, st.Ready, st.RestartCount, st.LastTerminationState)
	}
	return nil
}

// listed says that a service's slices list its pods and nothing else.
func (c *chaos) listed(ctx context.Context, service string, pods []v1.Pod) error {
	var want, have []string
	for _, p := range pods {
		if p.Labels["app"] == service {
			want = append(want, p.Status.PodIP)
		}
	}
	sliceList, err := c.api.DiscoveryV1().EndpointSlices("default").List(ctx, metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=" + service})
	if err != nil {
		return err
	}
	for _, s := range sliceList.Items {
		for _, e := range s.Endpoints {
			if e.Conditions.Ready != nil && *e.Conditions.Ready {
				have = append(have, e.Addresses...)
			}
		}
	}
	return same("endpoints of service "+service, have, want)
}
