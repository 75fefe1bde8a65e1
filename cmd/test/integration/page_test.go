//go:build integration

package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skiff-sh/skiff/cmd/dev"
	"github.com/skiff-sh/skiff/cmd/test/page"
	"github.com/skiff-sh/skiff/cmd/test/traffic"
)

// updatePageEnv writes to the page how long commands took, and what they printed
// where that is not what the page shows. Random text is then to be replaced by
// hand.
const updatePageEnv = "SKIFF_UPDATE_PAGE"

// TestOperationsPage does what docs/operations.md says, command by command, on
// clusters of this machine, and compares what they print. The page's hosts are
// nodes; paths of a real host stand for those of the node.
func TestOperationsPage(t *testing.T) { runPage(t, "../../../docs/operations.md") }

// TestPodsPage does the same with docs/pods.md.
func TestPodsPage(t *testing.T) { runPage(t, "../../../docs/pods.md") }

func runPage(t *testing.T, path string) {
	steps, err := page.Read(path)
	must(t, err)
	var done []outcome
	for len(steps) > 0 {
		if d := steps[0].Directive; len(d) == 0 || d[0] != "cluster" {
			t.Fatalf("%v: the first thing of a section is a cluster", steps[0])
		}
		end := 1
		for end < len(steps) && (len(steps[end].Directive) == 0 || steps[end].Directive[0] != "cluster") {
			end++
		}
		part := steps[:end]
		steps = steps[end:]
		t.Run(part[0].Section, func(t *testing.T) {
			p := newPageRun(t, part[0].Directive[1:])
			for _, s := range part[1:] {
				o, err := p.do(t, s)
				if err != nil {
					t.Fatalf("%s, %v: %v", path, s, err)
				}
				done = append(done, o)
			}
		})
	}
	if os.Getenv(updatePageEnv) != "" {
		must(t, updatePage(path, done))
	}
}

// outcome of a step of the page.
type outcome struct {
	page.Step
	took    time.Duration
	printed string
	other   bool // than the page shows
}

// updatePage writes what came of the page's commands to it.
func updatePage(path string, done []outcome) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	at := regexp.MustCompile(`# [0-9.]+ s$`)
	lines := strings.Split(string(b), "\n")
	for _, o := range slices.Backward(done) { // line numbers before a change stay
		lines[o.Line-1] = at.ReplaceAllString(lines[o.Line-1], fmt.Sprintf("# %.1f s", max(0.1, o.took.Seconds())))
		if o.other {
			printed := strings.Split(strings.TrimSpace(o.printed), "\n")
			if printed[0] == "" {
				printed = nil
			}
			lines = slices.Replace(lines, o.Line, o.Line+len(o.Output), printed...)
		}
	}
	return os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o644)
}

// pageRun is a cluster on which a part of the page is done.
type pageRun struct {
	*devCluster
	homes   string // folders that stand for /root of each host, and for /backup
	network string // what stands for 192.0.2.
	hosts   []string

	mu      sync.Mutex      // guards what follows, and is held while skiff is started or stopped
	units   map[string]bool // hosts on which systemctl has started skiff
	outside map[string]*traffic.Load
}

func newPageRun(t *testing.T, args []string) *pageRun {
	t.Helper()
	cfg := dev.Config{}
	for _, a := range args {
		key, value, _ := strings.Cut(a, "=")
		n, err := strconv.Atoi(value)
		switch {
		case key == "version":
			cfg.Binary = build(t, value, "")
		case key == "schedule": // of snapshots, with _ for spaces
			cfg.ServerArgs = []string{"--snapshot-schedule", strings.ReplaceAll(value, "_", " ")}
		case err == nil && key == "servers":
			cfg.Servers = n
		case err == nil && key == "agents":
			cfg.Agents = n
		default:
			t.Fatalf("%s: no such property of a cluster", a)
		}
	}
	p := &pageRun{devCluster: newCluster(t, cfg), homes: t.TempDir(), outside: map[string]*traffic.Load{}, units: map[string]bool{}}
	if cfg.Servers > 1 {
		p.lead(t, "server-1")
	}
	p.network = strings.TrimSuffix(p.status(t).Subnet, "0/24")
	must(t, os.Mkdir(filepath.Join(p.homes, "backup"), 0o700))
	must(t, os.Mkdir(filepath.Join(p.homes, laptop), 0o700))
	must(t, os.Mkdir(filepath.Join(p.homes, "bin"), 0o700))
	for _, name := range []string{"skiff", "kubectl"} {
		must(t, os.Symlink(p.Program("server-1"), filepath.Join(p.homes, "bin", name)))
	}
	for _, n := range p.status(t).Nodes {
		must(t, os.Mkdir(filepath.Join(p.homes, n.Name), 0o700))
		p.hosts = append(p.hosts, n.Name)
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		p.restart(stop)
	}()
	t.Cleanup(func() { close(stop); <-done; p.endLoad() })
	return p
}

// lead stops and starts whoever leads until that server does, as on the page: on a
// busy machine another one may have been elected.
func (p *pageRun) lead(t *testing.T, server string) {
	t.Helper()
	for leader := p.leader(t); leader != server; leader = p.leader(t) {
		t.Logf("%s leads, not %s", leader, server)
		must(t, p.Kill(t.Context(), leader, dev.KillOptions{Signal: unix.SIGTERM}))
		p.start(t, leader)
		p.devCluster.healthy(t)
	}
}

// laptop is the page's host that is no member.
const laptop = "laptop"

func (p *pageRun) do(t *testing.T, s page.Step) (o outcome, err error) {
	o.Step = s
	if len(s.Directive) > 0 {
		return o, p.direct(t, s.Directive)
	}
	if s.File != "" {
		return o, os.WriteFile(filepath.Join(p.homes, s.Host, s.File), []byte(s.Content), 0o600)
	}
	update := os.Getenv(updatePageEnv) != ""
	patience := 90 * slower * time.Second
	if update {
		patience = 10 * time.Second
	}
	// What only looks is looked at until it is as the page shows.
	for deadline := time.Now().Add(patience); ; time.Sleep(200 * time.Millisecond) {
		began := time.Now()
		o.printed, err = p.run(t, s.Host, s.Command)
		o.took = time.Since(began)
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			return o, err
		}
		if failed := err != nil; failed != s.Fails && !update {
			err = fmt.Errorf("it ended with %v and printed:\n%s", err, o.printed)
		} else {
			err = page.Match(s.Output, o.printed)
		}
		if err == nil || !looks.MatchString(s.Command) || time.Now().After(deadline) {
			break
		}
	}
	t.Logf("%s# %s: %v", s.Host, s.Command, o.took.Round(time.Millisecond))
	if err != nil && update {
		o.other = true
		return o, nil
	}
	if limit := 10*s.Took + 10*time.Second; err == nil && s.Took > 0 && o.took > limit {
		err = fmt.Errorf("it took %v, the page says %v", o.took, s.Took)
	}
	return o, err
}

var (
	looks      = regexp.MustCompile(`^skiff (status|member list|snapshot ls|recover (--rejoin )?--dry-run|certs status|upgrade (status|plan)|kubectl get)\b|^kubectl (.* )?(get|describe|logs|top) |^kubectl exec .* -- (cat|wc|wget) `)
	systemctl  = regexp.MustCompile(`^systemctl (start|stop|restart) skiff$`)
	remoteFile = regexp.MustCompile(`\b((?:server|agent)-[0-9]+|` + laptop + `):(/\S+)`)
)

// run runs a command line of the page.
func (p *pageRun) run(t *testing.T, host, command string) (string, error) {
	if m := systemctl.FindStringSubmatch(command); m != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.units[host] = m[1] != "stop"
		if m[1] != "start" {
			if err := p.Kill(t.Context(), host, dev.KillOptions{Signal: unix.SIGTERM}); err != nil {
				return "", err
			}
		}
		if m[1] != "stop" {
			return "", p.Start(t.Context(), host)
		}
		return "", nil
	}
	if strings.HasPrefix(command, "scp ") {
		command = "cp " + remoteFile.ReplaceAllStringFunc(command[len("scp "):], func(at string) string {
			other, path, _ := strings.Cut(at, ":")
			return p.paths(other).Replace(path)
		})
	}
	home := filepath.Join(p.homes, host)
	cmd := exec.CommandContext(t.Context(), "sh", "-c", "export HOME="+home+"; "+p.paths(host).Replace(command))
	cmd.Dir = home
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	var err error
	if host == laptop {
		kubeconfig, kerr := p.Kubeconfig(t.Context())
		if kerr != nil {
			return "", kerr
		}
		cmd.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig, "PATH="+filepath.Join(p.homes, "bin")+":"+os.Getenv("PATH"))
		err = cmd.Start()
	} else {
		err = p.Exec(host, cmd)
	}
	if err == nil {
		err = cmd.Wait()
	}
	return p.names(host).Replace(out.String()), err
}

// restart starts skiff again where it has ended after systemctl started it, as the
// unit says: a host that joins may be refused at first.
func (p *pageRun) restart(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(time.Second):
		}
		p.mu.Lock()
		if st, err := p.Status(); err == nil {
			for _, n := range st.Nodes {
				if p.units[n.Name] && n.State == "stopped" {
					_ = p.Start(context.Background(), n.Name) // in a second again
				}
			}
		}
		p.mu.Unlock()
	}
}

// paths turns what a command on a host names into what stands for it here.
func (p *pageRun) paths(host string) *strings.Replacer {
	pairs := []string{"192.0.2.", p.network, "/root", filepath.Join(p.homes, host), "/backup", filepath.Join(p.homes, "backup")}
	if host != laptop {
		pairs = append(pairs, "/var/lib/skiff", p.data(host), "/etc/skiff/manifests", filepath.Join(filepath.Dir(p.data(host)), "manifests"), "/usr/local/bin/skiff", p.Program(host))
	}
	return strings.NewReplacer(pairs...)
}

// names turns what a command printed back.
func (p *pageRun) names(host string) *strings.Replacer {
	pairs := []string{p.network, "192.0.2.", filepath.Join(p.homes, host), "/root", filepath.Join(p.homes, "backup"), "/backup"}
	for _, node := range p.hosts {
		pairs = append(pairs, p.data(node), "/var/lib/skiff", p.Program(node), "/usr/local/bin/skiff")
	}
	return strings.NewReplacer(pairs...)
}

// direct is what the page does not show: what happens to hosts, and what must
// hold.
func (p *pageRun) direct(t *testing.T, words []string) error {
	ctx, args := t.Context(), words[1:]
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.units) // what happens now, no unit is to undo
	each := func(do func(host string) error) error {
		for _, host := range args {
			if err := do(host); err != nil {
				return err
			}
		}
		return nil
	}
	switch words[0] {
	case "power-off":
		return each(func(host string) error { return p.Kill(ctx, host, dev.KillOptions{Host: true}) })
	case "lose": // the machine, with its disk; another one gets its name
		return each(func(host string) error {
			return errors.Join(p.Kill(ctx, host, dev.KillOptions{Host: true}), p.Wipe(ctx, host))
		})
	case "power-on":
		return each(func(host string) error { return p.Start(ctx, host) })
	case "kill":
		return each(func(host string) error { return p.Kill(ctx, host, dev.KillOptions{}) })
	case "expire-certificates":
		p.expireAll(t)
	case "healthy":
		p.devCluster.healthy(t)
	case "undisturbed": // pods, but those on the named hosts
		p.undisturbed(t, args...)
	case "empty": // without the pods that every cluster of the tests begins with
		p.kubectl(t, "delete", "daemonset/steady", "deployment/spread", "service/steady", "--cascade=foreground")
		p.steady = nil
	case "steady": // the pods are now those that must not change
		return p.keepSteady(t)
	case "program": // VERSION FILE [TAGS]: what a user has downloaded to each host
		for _, host := range p.hosts {
			if err := os.Link(build(t, args[0], strings.Join(args[2:], ",")), filepath.Join(p.homes, host, args[1])); err != nil {
				return err
			}
		}
	case "load": // from now on requests must be answered
		for _, n := range p.status(t).Nodes {
			p.outside[n.Name] = traffic.Start(traffic.Config{URL: p.url(n.Name), Every: 20 * time.Millisecond})
		}
	case "answered":
		return p.endLoad()
	default:
		return errors.New("no such directive")
	}
	return nil
}

// endLoad ends the requests, all of which must have been answered.
func (p *pageRun) endLoad() (err error) {
	for node, l := range p.outside {
		r := l.Stop()
		if r.Total() == 0 {
			err = errors.Join(err, fmt.Errorf("%s answered nothing", node))
		}
		for _, f := range r.Failures {
			err = errors.Join(err, fmt.Errorf("a request at %s: %s", node, f))
		}
	}
	clear(p.outside)
	return err
}

// keepSteady waits until all pods that restart never run, and remembers them.
func (p *pageRun) keepSteady(t *testing.T) (err error) {
	p.kubectl(t, "rollout", "status", "daemonset/steady", "--timeout=240s")
	p.kubectl(t, "rollout", "status", "deployment/spread", "--timeout=240s")
	p.steady, err = p.snapshot(t.Context())
	return err
}
