package shimproto

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/skiff-sh/skiff/fsm/golden"
)

// goldenState is a pod as its shim and skiff have it on the disk, and what they say
// to each other.
func goldenState() (sb Sandbox, st ContainerStatus, hello Hello, requests []Request) {
	limit := int64(64 << 20)
	at := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	sb = Sandbox{Hostname: "web-0", SharePID: true, Cgroup: "/skiff/0a1b2c3d/pod4711", Resources: &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}},
		Sysctls: map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"}, Fence: &Fence{File: "/run/skiff/0a1b2c3d/fence", Seconds: 40},
		Client: json.RawMessage(`{"config":{"PodUID":"4711"},"shim":"/var/lib/skiff/node/shim-0123456789ab/skiff-shim"}`)}
	st = ContainerStatus{ID: "c1", Name: "web", Attempt: 2, State: Exited, PID: 321, CreatedAt: at, StartedAt: at.Add(time.Second), FinishedAt: at.Add(time.Minute),
		ExitCode: 137, Signal: 9, OOMKilled: true, Message: "killed", LogPath: "/var/lib/skiff/node/logs/web/2.log", CgroupPath: "/skiff/0a1b2c3d/pod4711/c1",
		TTY: true, Stdin: true, Annotations: map[string]string{"hash": "abc"}}
	hello = Hello{Version: 1, Min: 1, Build: golden.Version, PID: 320}
	requests = []Request{
		{Op: OpWatch}, {Op: OpStart, ID: "c1", Start: &Start{Status: st, Spec: &specs.Spec{Version: "1.2.0"}, Stdin: true}},
		{Op: OpSignal, ID: "c1", Signal: 15}, {Op: OpRemove, ID: "c1"}, {Op: OpUpdate, Resources: sb.Resources}, {Op: OpReopen, ID: "c1"},
		{Op: OpExec, ID: "c1", Exec: &Exec{Args: []string{"sh"}, Env: []string{"A=b"}, Cwd: "/", TTY: true, Size: Size{80, 24}}},
		{Op: OpAttach, ID: "c1", Attach: &Attach{Stdout: true}}, {Op: OpShutdown},
	}
	return sb, st, hello, requests
}

// TestGoldenShim reads what shims of every release have on the disk and say: they
// outlive the skiff that started them.
func TestGoldenShim(t *testing.T) {
	sb, st, hello, requests := goldenState()
	if golden.Update(t) {
		dir := golden.Fresh(t, "pod")
		golden.WriteJSON(t, filepath.Join(dir, ConfigName), sb)
		if err := os.Mkdir(filepath.Join(dir, RecordsName), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := WriteRecord(dir, &st); err != nil {
			t.Fatal(err)
		}
		if err := WriteFence(filepath.Join(dir, "fence"), FenceRecord{Boot: "boot", Granted: 12345}); err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		err := WriteJSON(&b, FrameHello, hello)
		for _, r := range requests {
			if err == nil {
				err = WriteJSON(&b, FrameRequest, r)
			}
		}
		for _, f := range []struct {
			t FrameType
			v any
		}{{FrameResponse, Response{Error: "no", Code: CodeNotFound, Status: &st, Warning: "w"}}, {FrameEvent, Event{Status: &st}}, {FrameEvent, Event{Synced: true}}, {FrameExit, Exit{ExitCode: 3}}} {
			if err == nil {
				err = WriteJSON(&b, f.t, f.v)
			}
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "frames.bin"), b.Bytes(), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	golden.Each(t, "pod", func(t *testing.T, dir string) {
		compact := func(s Sandbox) Sandbox { // the record is indented in the file
			var b bytes.Buffer
			if err := json.Compact(&b, s.Client); err != nil {
				t.Fatal(err)
			}
			s.Client = b.Bytes()
			return s
		}
		if got := golden.ReadJSON[Sandbox](t, filepath.Join(dir, ConfigName)); !reflect.DeepEqual(compact(got), compact(sb)) {
			t.Errorf("sandbox: %+v", got)
		}
		if got, err := ReadRecords(dir); err != nil || len(got) != 1 || !reflect.DeepEqual(got[0], st) {
			t.Errorf("records: %+v, %v", got, err)
		}
		if got, err := ReadFence(filepath.Join(dir, "fence")); err != nil || got != (FenceRecord{Boot: "boot", Granted: 12345}) {
			t.Errorf("fence: %+v, %v", got, err)
		}
		b, err := os.ReadFile(filepath.Join(dir, "frames.bin"))
		if err != nil {
			t.Fatal(err)
		}
		r := bytes.NewReader(b)
		var h Hello
		if err := ReadJSON(r, FrameHello, &h); err != nil || h.Check() != nil || h.PID != hello.PID {
			t.Errorf("hello: %+v, %v, %v", h, err, h.Check())
		}
		for i, want := range requests {
			var got Request
			if err := ReadJSON(r, FrameRequest, &got); err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("request %d: %+v, %v", i, got, err)
			}
		}
		var resp Response
		var event, synced Event
		var exit Exit
		for _, f := range []struct {
			t FrameType
			v any
		}{{FrameResponse, &resp}, {FrameEvent, &event}, {FrameEvent, &synced}, {FrameExit, &exit}} {
			if err := ReadJSON(r, f.t, f.v); err != nil {
				t.Fatal(err)
			}
		}
		if resp.Code != CodeNotFound || resp.Warning != "w" || !reflect.DeepEqual(*resp.Status, st) || !reflect.DeepEqual(*event.Status, st) || !synced.Synced || exit.ExitCode != 3 {
			t.Errorf("answers: %+v, %+v, %+v, %+v", resp, event, synced, exit)
		}
	})
}
