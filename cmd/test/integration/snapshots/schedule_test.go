//go:build integration

package snapshots

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/skiff-sh/skiff/backup"
	"github.com/skiff-sh/skiff/cluster/membership"
)

// member is a server that runs no pods.
type member struct {
	name, dir string
	args      []string
	cmd       *exec.Cmd
}

// newMember starts one. Only the ports differ: all are on the loopback.
func newMember(t *testing.T, n int, args ...string) *member {
	t.Helper()
	m := &member{name: fmt.Sprintf("s%d", n), dir: filepath.Join(t.TempDir(), "data")}
	ip := fmt.Sprintf("127.0.11.%d", n)
	m.args = []string{"server", "--disable-agent", "--config", os.DevNull, "--data-dir", m.dir, "--name", m.name, "--bind-address", ip}
	for _, flag := range []string{"--api-port", "--raft-port", "--gossip-port"} {
		_, port, err := net.SplitHostPort(freeAddr(t, ip))
		if err != nil {
			t.Fatal(err)
		}
		m.args = append(m.args, flag, port)
	}
	m.args = append(m.args, args...)
	m.start(t)
	t.Cleanup(m.kill)
	return m
}

func (m *member) address() string {
	return m.args[slices.Index(m.args, "--bind-address")+1] + ":" + m.args[slices.Index(m.args, "--api-port")+1]
}

func (m *member) start(t *testing.T) {
	t.Helper()
	log, err := os.OpenFile(m.dir+".log", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	m.cmd = exec.Command(binaries.skiff, m.args...)
	m.cmd.Stdout, m.cmd.Stderr = log, log
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if t.Failed() {
		return
	}
	t.Cleanup(func() {
		if t.Failed() {
			b, _ := os.ReadFile(m.dir + ".log")
			lines := strings.Split(strings.TrimSpace(string(b)), "\n")
			t.Logf("last words of %s:\n%s", m.name, strings.Join(lines[max(0, len(lines)-30):], "\n"))
		}
	})
}

// kill is kill -9.
func (m *member) kill() {
	if m.cmd != nil {
		m.cmd.Process.Kill()
		m.cmd.Wait()
		m.cmd = nil
	}
}

// skiff runs a command as the administrator of the member.
func (m *member) skiff(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), binaries.skiff, args...)
	cmd.Env = append(os.Environ(), "SKIFF_DATA_DIR="+m.dir)
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("skiff %s: %w: %s", strings.Join(args, " "), err, exit.Stderr)
	}
	return string(out), err
}

func (m *member) status(t *testing.T) (st membership.Status, err error) {
	t.Helper()
	out, err := m.skiff(t, "status", "-o", "json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &st)
	}
	return st, err
}

func eventually(t *testing.T, within time.Duration, what string, cond func() (bool, error)) {
	t.Helper()
	var last error
	for deadline := time.Now().Add(within); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		ok, err := cond()
		if ok {
			return
		}
		last = err
	}
	t.Fatalf("%s: not within %s (last error: %v)", what, within, last)
}

// TestScheduleOfThree: three servers save every minute, and one of them stores in
// the bucket: the first minute with an S3 service that is down, then with one that
// is there, then with another leader. Each minute has one upload; the files can be
// read with the key only.
func TestScheduleOfThree(t *testing.T) {
	g := startGateway(t)
	g.kill()
	key, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	keyFile := filepath.Join(t.TempDir(), "age.key")
	write(t, keyFile, key.String()+"\n", 0o600)
	s3 := []string{"--s3-endpoint", g.url(), "--s3-ca-file", g.ca, "--s3-credentials-file", g.keys}
	args := append([]string{"--snapshot-schedule", "* * * * *", "--snapshot-keep", "2", "--snapshot-compress",
		"--snapshot-encrypt-to", key.Recipient().String(), "--snapshot-s3", "s3://" + bucket + "/prod"}, s3...)
	all := []*member{newMember(t, 1, args...)}
	var token string
	eventually(t, 4*time.Minute, "the first server", func() (bool, error) {
		token, err = all[0].skiff(t, "token", "create", "--role", "server")
		return err == nil, err
	})
	for n := 2; n <= 3; n++ {
		all = append(all, newMember(t, n, append(args, "--join", all[0].address(), "--token", strings.TrimSpace(token))...))
	}
	voters := func(m *member) (st membership.Status, n int, err error) {
		st, err = m.status(t)
		for _, o := range st.Members {
			if o.Voter {
				n++
			}
		}
		return st, n, err
	}
	eventually(t, 4*time.Minute, "three voters", func() (bool, error) {
		_, n, err := voters(all[0])
		return n == 3, err
	})

	// Every server has a file of its own; the leader says that S3 does not answer.
	eventually(t, 6*time.Minute, "files on all servers, and a failure", func() (bool, error) {
		st, err := all[1].status(t)
		if err != nil || len(st.Snapshots) != 3 {
			return false, err
		}
		local, failed := 0, 0
		for _, s := range st.Snapshots {
			for _, p := range s.Places {
				switch {
				case strings.HasPrefix(p.Place, "s3://") && p.Failures > 0 && s.Server == st.Leader:
					failed++
				case p.Last != nil:
					local++
				}
			}
		}
		return local == 3 && failed == 1 && strings.Contains(strings.Join(st.Warnings, "\n"), "refused"), nil
	})
	eventually(t, time.Minute, "an event of the failure", func() (bool, error) {
		events, err := all[2].skiff(t, "kubectl", "get", "events", "-A", "--field-selector", "reason=SnapshotFailed", "-o", "jsonpath={.items[*].message}")
		if err == nil && !strings.Contains(events, g.url()) {
			err = fmt.Errorf("there are %q", events)
		}
		return err == nil, err
	})

	g.start(t)
	eventually(t, 6*time.Minute, "an upload", func() (bool, error) { return len(g.objects(t.Context(), t)) > 0, nil })
	var i int
	eventually(t, time.Minute, "a leader", func() (bool, error) {
		st, _, err := voters(all[1])
		i = slices.IndexFunc(all, func(m *member) bool { return m.name == st.Leader })
		return err == nil && i >= 0, err
	})
	all[i].kill()
	rest := all[(i+1)%3]
	before := g.objects(t.Context(), t)
	eventually(t, 6*time.Minute, "an upload by another leader", func() (bool, error) {
		now := g.objects(t.Context(), t)
		return !slices.Contains(before, now[len(now)-1]), nil
	})
	// With two kept, the third takes the first's place; none is of the same minute.
	var objects []string
	eventually(t, time.Minute, "two files", func() (bool, error) { // the oldest goes after the upload
		objects = g.objects(t.Context(), t)
		unfinished := g.unfinished(t.Context(), t)
		return len(objects) <= 2 && len(unfinished) == 0, fmt.Errorf("there is %v, unfinished %v", objects, unfinished)
	})
	minutes := map[string]bool{}
	for _, o := range objects {
		n, ok := backup.ParseName(strings.TrimPrefix(o, "prod/"))
		if !ok || !n.Compressed || !n.Encrypted || minutes[n.At.Format("15:04")] {
			t.Errorf("%s among %v", o, objects)
		}
		minutes[n.At.Format("15:04")] = true
	}

	// What an operator does with them.
	newest := "s3://" + bucket + "/" + objects[len(objects)-1]
	if _, err := rest.skiff(t, append([]string{"snapshot", "verify", newest}, s3...)...); err == nil || !strings.Contains(err.Error(), "encrypted") {
		t.Errorf("without the key: %v", err)
	}
	eventually(t, time.Minute, "a list of two whole files", func() (bool, error) { // at the next upload there are three for a moment
		list, err := rest.skiff(t, append([]string{"snapshot", "ls", "s3://" + bucket + "/prod", "--decrypt-key-file", keyFile, "-o", "json"}, s3...)...)
		return err == nil && strings.Count(list, `"state":"whole"`) == len(objects), fmt.Errorf("ls: %s, %v", list, err)
	})
	restored := filepath.Join(t.TempDir(), "restored")
	if _, err := rest.skiff(t, append([]string{"snapshot", "restore", newest, "--data-dir", restored, "--key-file", filepath.Join(rest.dir, "pki", "cluster.key"), "--decrypt-key-file", keyFile}, s3...)...); err != nil {
		t.Error(err)
	}
	if _, err := rest.skiff(t, append([]string{"snapshot", "save", "s3://" + bucket + "/by-hand/one"}, s3...)...); err != nil {
		t.Error(err)
	}
	if _, err := rest.skiff(t, append([]string{"snapshot", "prune", "s3://" + bucket + "/prod", "--keep", "1", "--decrypt-key-file", keyFile, "--yes"}, s3...)...); err != nil {
		t.Error(err)
	}
	if got := g.objects(t.Context(), t); !slices.Contains(got, "by-hand/one") || len(got) > 3 {
		t.Errorf("in the end there is %v", got)
	}
}
