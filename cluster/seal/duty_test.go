package seal

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
)

// TestDutyComplainsOnce: what goes wrong again and again is said once.
func TestDutyComplainsOnce(t *testing.T) {
	l := newLog()
	key, err := NewKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	synctest.Test(t, func(t *testing.T) {
		s := newSealer(t, l, key)
		s.cfg.Logger = slog.New(slog.NewTextHandler(&said, nil))
		l.fail = errors.New("the disk is full")
		ctx, cancel := context.WithTimeout(t.Context(), 20*retry)
		defer cancel()
		tries := 0
		s.step = func(string) { tries++ }
		if err := s.Duty(ctx); err != nil || tries < 10 {
			t.Errorf("%v after %d tries", err, tries)
		}
	})
	if n := bytes.Count(said.Bytes(), []byte("disk is full")); n != 1 {
		t.Errorf("said %d times:\n%s", n, said.String())
	}
}
