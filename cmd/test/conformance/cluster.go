package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/skiff-sh/skiff/cmd/dev"
)

type clusterOptions struct {
	servers, agents int
	subnet          string
	keep            bool
}

// cluster is one that was made for the run, and the registry that its nodes pull
// from.
type cluster struct {
	dir, kubeconfig string
	keep            bool
	server          *http.Server
}

// startCluster makes the images, serves them, and makes the cluster whose nodes
// take that registry for those of the tests.
func startCluster(ctx context.Context, o options, s *suite) (c *cluster, err error) {
	archives, err := makeImages(ctx, o, s)
	if err != nil {
		return nil, err
	}
	c = &cluster{dir: filepath.Join(o.out, "cluster"), keep: o.cluster.keep}
	defer func() {
		if err != nil {
			c.keep = false
			err = errors.Join(err, c.stop())
		}
	}()
	// One that an earlier run has left.
	if _, err := dev.Down(ctx, c.dir); err != nil {
		return nil, err
	}
	subnet, err := subnetOf(o.cluster)
	if err != nil {
		return nil, err
	}
	port, hosts, err := c.serve(archives, filepath.Join(o.out, "registry"))
	if err != nil {
		return nil, err
	}
	config := filepath.Join(o.out, "nodes.yaml")
	if err := writeConfig(config, hosts, fmt.Sprintf("http://%s:%d", subnet.Addr().Next(), port)); err != nil {
		return nil, err
	}
	flag := []string{"--config", config}
	d, err := dev.Up(ctx, dev.Config{Dir: c.dir, Binary: o.binary, Servers: o.cluster.servers, Agents: o.cluster.agents, Subnet: subnet,
		ServerArgs: flag, AgentArgs: flag, DiskSize: 32 << 30, Progress: func(format string, args ...any) { fmt.Printf(format+"\n", args...) }})
	if err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	c.kubeconfig, err = d.Kubeconfig(ctx)
	return c, err
}

func (c *cluster) stop() error {
	if c.keep {
		fmt.Printf("the cluster is left, without its registry: export KUBECONFIG=%s; remove it with: skiff dev down --data-dir %s\n", c.kubeconfig, c.dir)
	} else {
		clean, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if _, err := dev.Down(clean, c.dir); err != nil {
			return err
		}
	}
	if c.server == nil {
		return nil
	}
	return c.server.Close()
}

func subnetOf(o clusterOptions) (netip.Prefix, error) {
	if o.subnet == "" {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 188, byte(os.Getpid()), 0}), 24), nil
	}
	p, err := netip.ParsePrefix(o.subnet)
	if err != nil || p.Bits() != 24 || !p.Addr().Is4() {
		return p, fmt.Errorf("-subnet %s: want an IPv4 range of /24", o.subnet)
	}
	return p.Masked(), nil
}

// makeImages gives the archives of the images that the suite uses: those of the
// user, and those that can be made and are not there yet.
func makeImages(ctx context.Context, o options, s *suite) ([]string, error) {
	refs, err := s.images(ctx)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(o.out, "images")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	var archives []string
	have := map[string]bool{}
	for _, d := range []string{o.images, dir} {
		if d == "" {
			continue
		}
		if _, err := os.Stat(d); err != nil {
			return nil, fmt.Errorf("-images: %w", err)
		}
		files, err := filepath.Glob(filepath.Join(d, "*.tar"))
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			ref, err := refOf(f)
			if err != nil {
				return nil, err
			}
			if !have[ref] {
				archives = append(archives, f)
			}
			have[ref] = true
		}
	}
	var missing []string
	for _, r := range refs {
		if !have[r] {
			missing = append(missing, r)
		}
	}
	if len(missing) == 0 {
		return archives, nil
	}
	fmt.Println("making images")
	args := []string{"run", "github.com/skiff-sh/skiff/cmd/test/images", "-out", dir, "-refs", strings.Join(missing, ",")}
	if o.agnhost != "" {
		args = append(args, "-agnhost", o.agnhost)
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("make images: %w\n%s%s", err, out, said.String())
	}
	notMade := filepath.Join(o.out, "images-missing.txt")
	if err := os.WriteFile(notMade, said.Bytes(), 0o644); err != nil {
		return nil, err
	}
	if n := strings.Count(said.String(), "\n"); n > 0 {
		fmt.Printf("%d images that some tests use cannot be made here: %s; -images takes archives of them\n", n, notMade)
	}
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) == 2 {
			archives = append(archives, f[1])
		}
	}
	return archives, nil
}

func refOf(archive string) (string, error) {
	m, err := tarball.LoadManifest(func() (io.ReadCloser, error) { return os.Open(archive) })
	if err != nil {
		return "", fmt.Errorf("%s: %w", archive, err)
	}
	if len(m) != 1 || len(m[0].RepoTags) != 1 {
		return "", fmt.Errorf("%s: want an archive of one image with one tag", archive)
	}
	return m[0].RepoTags[0], nil
}

// serve puts the archives into a registry on all addresses of this machine.
func (c *cluster) serve(archives []string, blobs string) (port int, hosts []string, err error) {
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return 0, nil, err
	}
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		return 0, nil, err
	}
	port = l.Addr().(*net.TCPAddr).Port
	c.server = &http.Server{Handler: registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithBlobHandler(registry.NewDiskBlobHandler(blobs)))}
	go func() { _ = c.server.Serve(l) }()
	seen := map[string]bool{}
	for _, a := range archives {
		text, err := refOf(a)
		if err != nil {
			return 0, nil, err
		}
		tag, err := name.NewTag(text)
		if err != nil {
			return 0, nil, fmt.Errorf("%s: %w", a, err)
		}
		img, err := tarball.ImageFromPath(a, &tag)
		if err != nil {
			return 0, nil, fmt.Errorf("%s: %w", a, err)
		}
		to, err := name.NewTag(fmt.Sprintf("127.0.0.1:%d/%s:%s", port, tag.RepositoryStr(), tag.TagStr()), name.Insecure)
		if err != nil {
			return 0, nil, err
		}
		if err := remote.Write(to, img); err != nil {
			return 0, nil, fmt.Errorf("serve %s: %w", text, err)
		}
		host := tag.RegistryStr()
		if host == name.DefaultRegistry {
			host = "docker.io" // as nodes call it
		}
		if !seen[host] {
			seen[host] = true
			hosts = append(hosts, host)
		}
	}
	return port, hosts, nil
}

// writeConfig writes the nodes' config file: one mirror for all registries.
func writeConfig(path string, hosts []string, mirror string) error {
	type entry struct {
		Mirrors []string `json:"mirrors"`
	}
	registries := map[string]entry{}
	for _, h := range hosts {
		registries[h] = entry{[]string{mirror}}
	}
	b, err := json.Marshal(map[string]any{"registries": registries}) // JSON is YAML
	if err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o644)
}
