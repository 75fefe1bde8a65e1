package gossip

import (
	"math"
	"strings"
	"testing"

	"github.com/skiff-sh/skiff/fsm"
)

func TestTagsRoundTrip(t *testing.T) {
	t.Parallel()
	for _, want := range []Tags{
		{},
		{ID: "0190a6c2-7f2e-7c1b-9f0a-2b0d6f3a1c11", Role: RoleWitness, ClusterID: "0190a6c2-7f2e-7c1b-9f0a-2b0d6f3a1c12", Version: "0.1.0-dev+abcdef",
			APIPort: 6443, RaftPort: 6444, NodePort: 10250, Trust: math.MaxUint64, Load: 100, Epoch: 1 << 40, EpochHash: math.MaxUint32,
			Orders: math.MaxUint64, MinLevel: 1, MaxLevel: math.MaxUint16, Free: 1 << 40},
	} {
		for _, leaving := range []bool{false, true} {
			b, err := encodeTags(want, leaving)
			if err != nil {
				t.Fatal(err)
			}
			got, left, err := decodeTags(b)
			if err != nil || got != want || left != leaving {
				t.Errorf("%+v became %+v, %v, %v", want, got, left, err)
			}
			// A later version may add fields.
			got, _, err = decodeTags(append(b, 200, 3, 'n', 'e', 'w'))
			if err != nil || got != want {
				t.Errorf("with an unknown field: %+v, %v", got, err)
			}
			if want.ID != "" && len(b) > 175 {
				t.Errorf("tags take %d bytes", len(b))
			}
		}
	}
}

func TestBadTagsAreRefused(t *testing.T) {
	t.Parallel()
	for name, b := range map[string][]byte{
		"empty": nil, "no version": {0}, "cut header": {1, fieldID}, "cut value": {1, fieldID, 5, 'a'},
		"no number": {1, fieldTrust, 1, 0x80}, "empty number": {1, fieldTrust, 0}, "port too big": {1, fieldAPIPort, 3, 0xff, 0xff, 0x7f}, "load too big": {1, fieldLoad, 2, 0xff, 0x7f},
	} {
		if got, _, err := decodeTags(b); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func FuzzDecodeTags(f *testing.F) {
	b, _ := encodeTags(Tags{ID: "i", Role: RoleAgent, ClusterID: strings.Repeat("c", 36), Trust: 9}, true)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		tags, leaving, err := decodeTags(b)
		if err != nil {
			return
		}
		again, err := encodeTags(tags, leaving)
		if err != nil {
			return
		}
		if got, l, err := decodeTags(again); err != nil || got != tags || l != leaving {
			t.Errorf("%+v became %+v, %v", tags, got, err)
		}
	})
}

// TestTagsAreOfTheLevel: what members say of themselves is in the version that
// the highest feature level says.
func TestTagsAreOfTheLevel(t *testing.T) {
	t.Parallel()
	if v := fsm.AtLevel(fsm.MaxLevel).Gossip; v != tagsVersion {
		t.Errorf("tags are of version %d, the level has %d", tagsVersion, v)
	}
}
