//go:build !nextlevel

package fsm

// What the build tag nextlevel adds to: see level_next.go.
const (
	nextLevels   = 0
	nextCommand  = 1
	nextSnapshot = 1
)

var furtherLevels []Level

func decodeFurther(uint64, []byte) (*further, bool, error) { return nil, false, nil }

func clearAtOnce(int, string) ([]Command, bool) { return nil, false }

// appendHeader and decodeHeader are the fields that formats after the first add
// to the header, before the cluster's ID.
func appendHeader(b []byte, _ *Header) []byte { return b }

func decodeHeader(*decoder, *Header) {}
