package damage

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

var le = binary.LittleEndian

// snapshotPlaces are those of a snapshot, see package fsm.
func snapshotPlaces(b []byte) []place {
	out := []place{{"magic", 3}, {"format version", 8}}
	var blocks []int
	for at := 12; at+5 <= len(b); {
		blocks = append(blocks, at)
		at += 5 + int(le.Uint32(b[at+1:])) + 4
	}
	for i, at := range blocks {
		name := "block of keys"
		switch {
		case i == 0:
			name = "header"
		case i == len(blocks)-1:
			name = "end"
		case i > 2 && i < len(blocks)-2:
			continue
		}
		n := int(le.Uint32(b[at+1:]))
		name = fmt.Sprintf("%s (block %d)", name, i)
		out = append(out, place{name + ", kind", at}, place{name + ", length", at + 1}, place{name + ", high byte of the length", at + 4},
			place{name + ", begin of the body", at + 5}, place{name + ", middle of the body", at + 5 + n/2}, place{name + ", end of the body", at + 4 + n},
			place{name + ", checksum", at + 5 + n})
	}
	return out
}

// pemPlaces are those of each PEM block.
func pemPlaces(b []byte) (out []place) {
	for at, i := 0, 1; ; i++ {
		from := bytes.Index(b[at:], []byte("-----BEGIN "))
		if from < 0 {
			return out
		}
		from += at
		end := bytes.Index(b[from:], []byte("-----END "))
		if end < 0 {
			return out
		}
		end += from
		body := from + bytes.IndexByte(b[from:], '\n') + 1
		name := func(s string) string { return fmt.Sprintf("%s of PEM block %d", s, i) }
		out = append(out, place{name("dash"), from}, place{name("type"), from + 11}, place{name("begin"), body + 3}, place{name("line break"), body - 1},
			place{name("middle"), (body + end) / 2}, place{name("last byte"), end - 2}, place{name("type at the end"), end + 10})
		at = end + 9
	}
}

// jsonPlaces are the punctuation, and begin and end of each string and number.
func jsonPlaces(b []byte) (out []place) {
	for i := 0; i < len(b); i++ {
		from := i
		switch c := b[i]; {
		case c == '"':
			for i++; i < len(b) && b[i] != '"'; i++ {
				if b[i] == '\\' {
					i++
				}
			}
			text := fmt.Sprintf("string %q at %d", b[from+1:min(i, from+12)], from)
			out = append(out, place{"quote of " + text, from})
			if i > from+1 {
				out = append(out, place{"begin of " + text, from + 1})
			}
			if i > from+2 {
				out = append(out, place{"end of " + text, i - 1})
			}
		case c >= '0' && c <= '9' || c >= 'a' && c <= 'z':
			for i+1 < len(b) && (b[i+1] >= '0' && b[i+1] <= '9' || b[i+1] >= 'a' && b[i+1] <= 'z') {
				i++
			}
			text := fmt.Sprintf("%q at %d", b[from:i+1], from)
			out = append(out, place{"first digit of " + text, from})
			if i > from {
				out = append(out, place{"last digit of " + text, i})
			}
		case bytes.IndexByte([]byte("{}[],:"), c) >= 0:
			out = append(out, place{fmt.Sprintf("%q at %d", c, i), i})
		}
	}
	return out
}
