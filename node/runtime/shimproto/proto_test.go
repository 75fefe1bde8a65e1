package shimproto

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func TestFrames(t *testing.T) {
	var b bytes.Buffer
	if err := WriteFrame(&b, FrameStdout, []byte("text")); err != nil {
		t.Fatal(err)
	}
	if err := WriteJSON(&b, FrameExit, Exit{ExitCode: 7}); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	typ, p, err := ReadFrame(&b, buf)
	if err != nil || typ != FrameStdout || string(p) != "text" || &p[0] != &buf[0] {
		t.Error(typ, p, err)
	}
	var e Exit
	if err := ReadJSON(&b, FrameExit, &e); err != nil || e.ExitCode != 7 {
		t.Error(e, err)
	}
	if _, _, err := ReadFrame(&b, nil); err != io.EOF {
		t.Error("end between frames:", err)
	}
	for in, want := range map[string]error{"\x0c\x00": io.ErrUnexpectedEOF, "\x0c\x00\x00\x00\x05ab": io.ErrUnexpectedEOF, "\x0c\xff\xff\xff\xff": ErrFrameTooLarge} {
		if _, _, err := ReadFrame(strings.NewReader(in), nil); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", in, err, want)
		}
	}
	if err := WriteFrame(io.Discard, FrameStdout, make([]byte, MaxFrame+1)); !errors.Is(err, ErrFrameTooLarge) {
		t.Error(err)
	}
	if err := WriteFrame(&b, FrameStdin, nil); err != nil {
		t.Fatal(err)
	}
	if err := ReadJSON(&b, FrameHello, &Hello{}); err == nil {
		t.Error("a frame of another type is accepted")
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte("\x0c\x00\x00\x00\x04text"))
	f.Add([]byte("\x01\x00\x00\x00\x02{}"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		for {
			typ, p, err := ReadFrame(r, nil)
			if err != nil {
				return
			}
			var out bytes.Buffer
			if err := WriteFrame(&out, typ, p); err != nil || !bytes.HasPrefix(in[len(in)-r.Len()-out.Len():], out.Bytes()) {
				t.Fatal("a frame does not survive being written again", err)
			}
		}
	})
}

func TestRecords(t *testing.T) {
	dir := t.TempDir()
	if got, err := ReadRecords(dir); err != nil || got != nil {
		t.Error(got, err)
	}
	if err := os.Mkdir(dir+"/"+RecordsName, 0o700); err != nil {
		t.Fatal(err)
	}
	want := ContainerStatus{ID: "a", Name: "n", State: Exited, ExitCode: 3, FinishedAt: time.Unix(5, 0).UTC(), Annotations: map[string]string{"k": "v"}}
	if err := WriteRecord(dir, &want); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/"+RecordsName+"/broken.json", []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := ReadRecords(dir)
	if err == nil || len(got) != 1 || got[0].ExitCode != 3 || got[0].Annotations["k"] != "v" || !got[0].FinishedAt.Equal(want.FinishedAt) {
		t.Errorf("%+v %v", got, err)
	}
	if err := errors.Join(RemoveRecord(dir, "a"), RemoveRecord(dir, "a"), RemoveRecord(dir, "broken")); err != nil {
		t.Error(err)
	}
	if got, err := ReadRecords(dir); err != nil || len(got) != 0 {
		t.Error(got, err)
	}
}

func TestPidfd(t *testing.T) {
	cmd := exec.Command("sleep", "100")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := OpenPidfd(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- p.Wait() }()
	if p.Exited() {
		t.Error("it still runs")
	}
	if err := p.Signal(9); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil || !p.Exited() {
		t.Error(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("it was killed")
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	// Close wakes a waiter.
	if p, err = OpenPidfd(os.Getpid()); err != nil {
		t.Fatal(err)
	}
	go func() { done <- p.Wait() }()
	time.Sleep(10 * time.Millisecond)
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
}
