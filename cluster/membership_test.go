package cluster

import (
	"context"
	"testing"
	"time"

	"github.com/skiff-sh/skiff/cluster/consensus"
)

func TestWhoWasNeverHeardIsShownSo(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ said, shown time.Duration }{{consensus.Never, -1}, {0, 0}, {time.Second, time.Second}} {
		if m := raftMember(consensus.MemberStats{LastContact: tc.said}); m.LastContact != tc.shown {
			t.Errorf("%d is shown as %d, want %d", tc.said, m.LastContact, tc.shown)
		}
	}
}

// Certificates are valid since a while before they were made; what counts is
// when they were made.
func TestAgeOfCertificates(t *testing.T) {
	t.Parallel()
	began := time.Now().Add(-time.Second) // certificates count in seconds
	certs := newServer(t).Status(context.Background()).Certificates
	if len(certs) < 4 {
		t.Fatalf("%d certificates", len(certs))
	}
	for _, c := range certs {
		if c.Issued.Before(began) || c.Issued.After(time.Now()) || !c.NotBefore.Before(began) {
			t.Errorf("%s: issued %s, valid from %s", c.Name, c.Issued, c.NotBefore)
		}
	}
}
