package gossip

import (
	"testing"
	"time"
)

func TestDeathAndReturn(t *testing.T) {
	t.Parallel()
	f := newFleet(t, fast)
	all := f.grow(5)
	poked, cancel := all[0].Changes()
	defer cancel()
	all[4].kill()
	took := f.await("death is seen", func() bool { return f.all(1, Dead) })
	t.Logf("death seen by all after %v", took)
	select {
	case <-poked:
	case <-time.After(10 * time.Second):
		t.Error("no change was announced")
	}
	m, _ := all[0].Member("n5")
	if all[0].Alive("id-5") || m.State != Dead || time.Since(m.Since) > 20*time.Second {
		t.Errorf("the dead member is %+v", m)
	}
	f.start(5, nil)
	f.await("return is seen", func() bool { return f.all(5, Alive) })
}
