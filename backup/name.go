package backup

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Name is the name of a snapshot file that skiff names itself:
// skiff-CLUSTER-20061121T150405Z-r1234.snap, .zst and .age after it for what it
// is wrapped in.
type Name struct {
	Cluster    string    // the first 8 characters of the cluster's ID
	At         time.Time // when it was saved, to the second
	Revision   int64
	Compressed bool
	Encrypted  bool
}

const nameTime = "20060102T150405Z"

var namePattern = regexp.MustCompile(`^skiff-([A-Za-z0-9]{1,8})-(\d{8}T\d{6}Z)-r(\d{1,19})` +
	regexp.QuoteMeta(SuffixPlain) + `(` + regexp.QuoteMeta(SuffixCompressed) + `)?(` + regexp.QuoteMeta(SuffixEncrypted) + `)?$`)

// ShortID is how names call a cluster.
func ShortID(clusterID string) string {
	short := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return -1
	}, clusterID)
	if short == "" {
		return "0"
	}
	return short[:min(8, len(short))]
}

func (n Name) String() string {
	s := fmt.Sprintf("skiff-%s-%s-r%d%s", ShortID(n.Cluster), n.At.UTC().Format(nameTime), n.Revision, SuffixPlain)
	if n.Compressed {
		s += SuffixCompressed
	}
	if n.Encrypted {
		s += SuffixEncrypted
	}
	return s
}

// ParseName reads a name; false says that skiff did not give it.
func ParseName(s string) (Name, bool) {
	m := namePattern.FindStringSubmatch(s)
	if m == nil {
		return Name{}, false
	}
	at, err := time.Parse(nameTime, m[2])
	if err != nil {
		return Name{}, false
	}
	revision, err := strconv.ParseInt(m[3], 10, 64)
	if err != nil {
		return Name{}, false
	}
	return Name{Cluster: m[1], At: at, Revision: revision, Compressed: m[4] != "", Encrypted: m[5] != ""}, true
}
