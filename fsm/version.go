package fsm

import "encoding/binary"

// MaxCommandVersion is the newest kind of commands that this program can apply.
// It grows with each command type that is added, see commandVersions; a leader
// proposes only what all members can apply.
const MaxCommandVersion = nextCommand

// commandVersions is the version that a member must have to apply a type.
var commandVersions = map[uint64]int{
	typePut: 1, typeDelete: 1, typeBatch: 1, typeConfiguration: 1, typeRestore: 1,
}

// CommandVersion is what MaxCommandVersion must be, at least, on a member that
// applies the encoded command. Of a command that this program does not know it
// is more than MaxCommandVersion.
func CommandVersion(cmd []byte) int {
	typ, k := binary.Uvarint(cmd)
	if v, ok := commandVersions[typ]; ok && k > 0 {
		return v
	}
	return MaxCommandVersion + 1
}
