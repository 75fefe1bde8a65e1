package fsm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// A log entry is a version byte followed by commands, each of them
//
//	uvarint type, uvarint length of the body, body
//
// with these bodies:
//
//	put            uvarint key length, key, varint expect, varint expires, value
//	delete         uvarint key length, key, varint expect
//	batch          two or more put and delete commands
//	configuration  fields: uvarint number, uvarint length, bytes
//	restore        fields likewise; it is the only command of its entry
const entryVersion = 1

// Command types. Numbers are only appended, never used again.
const (
	typePut           = uint64(Put)
	typeDelete        = uint64(Delete)
	typeBatch         = 3
	typeConfiguration = 4
	typeRestore       = 6 // 5 is that of builds with the tag nextlevel
)

// Fields of a configuration.
const fieldClusterID = 1

// EntryHeader begins every entry; encoded commands are appended to it.
func EntryHeader(dst []byte) []byte { return append(dst, entryVersion) }

// AppendCommand appends the encoded command to dst. Nothing is appended if the
// command is invalid or too large (ErrInvalid).
func AppendCommand(dst []byte, c Command) ([]byte, error) {
	if err := c.Validate(); err != nil {
		return dst, err
	}
	start := len(dst)
	switch {
	case c.Restore != nil:
		dst = appendFrame(dst, typeRestore, appendRestore(nil, c.Restore))
	case c.further != nil:
		dst = appendFrame(dst, c.further.typ, c.further.body)
	case c.Configuration != nil:
		body := binary.AppendUvarint(nil, fieldClusterID)
		body = appendString(body, c.Configuration.ClusterID)
		dst = appendFrame(dst, typeConfiguration, body)
	case len(c.Ops) == 1:
		dst = slices.Grow(dst, opSize(&c.Ops[0]))
		dst = appendOp(dst, &c.Ops[0])
	default:
		n := 0
		for i := range c.Ops {
			n += opSize(&c.Ops[i])
		}
		body := make([]byte, 0, n)
		for i := range c.Ops {
			body = appendOp(body, &c.Ops[i])
		}
		dst = appendFrame(dst, typeBatch, body)
	}
	if n := len(dst) - start; n > MaxCommandBytes {
		return dst[:start], fmt.Errorf("%w: %d bytes encoded, at most %d are possible", ErrInvalid, n, MaxCommandBytes)
	}
	return dst, nil
}

// EncodeEntry is a whole entry of the commands.
func EncodeEntry(cmds ...Command) ([]byte, error) {
	e := EntryHeader(nil)
	for i, c := range cmds {
		var err error
		if e, err = AppendCommand(e, c); err != nil {
			return nil, fmt.Errorf("encode command %d: %w", i, err)
		}
	}
	return e, nil
}

func appendFrame(dst []byte, typ uint64, body []byte) []byte {
	dst = binary.AppendUvarint(dst, typ)
	dst = binary.AppendUvarint(dst, uint64(len(body)))
	return append(dst, body...)
}

func appendOp(dst []byte, o *Op) []byte {
	n := uvarintLen(uint64(len(o.Key))) + len(o.Key) + varintLen(o.Expect)
	if o.Type == Put {
		n += varintLen(o.Expires) + len(o.Value)
	}
	dst = binary.AppendUvarint(dst, uint64(o.Type))
	dst = binary.AppendUvarint(dst, uint64(n))
	dst = appendString(dst, o.Key)
	dst = binary.AppendVarint(dst, o.Expect)
	if o.Type == Put {
		dst = binary.AppendVarint(dst, o.Expires)
		dst = append(dst, o.Value...)
	}
	return dst
}

// opSize is at least what appendOp appends.
func opSize(o *Op) int { return len(o.Key) + len(o.Value) + 5*binary.MaxVarintLen64 }

func appendString(dst []byte, s string) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(s)))
	return append(dst, s...)
}

func uvarintLen(v uint64) int {
	n := 1
	for ; v >= 0x80; v >>= 7 {
		n++
	}
	return n
}

func varintLen(v int64) int { return uvarintLen(uint64(v)<<1 ^ uint64(v>>63)) }

// ErrUnknownCommand says that an entry was written by a later version. A member
// that meets it must stop: skipping the command would let it diverge.
var ErrUnknownCommand = errors.New("command is not known to this version of skiff")

// DecodeEntry returns the commands of an entry. Values refer to data.
func DecodeEntry(data []byte) ([]Command, error) {
	var cmds []Command
	err := eachCommand(data, func(c Command) { cmds = append(cmds, c) })
	return cmds, err
}

// eachCommand decodes an entry. The Ops given to fn are valid until it returns.
func eachCommand(data []byte, fn func(Command)) error {
	if len(data) == 0 {
		return errors.New("empty entry")
	}
	if data[0] != entryVersion {
		return fmt.Errorf("%w: entry version %d", ErrUnknownCommand, data[0])
	}
	d := decoder{b: data[1:]}
	for n := 0; len(d.b) > 0; {
		typ, body := d.frame()
		if d.err != nil {
			return d.err
		}
		c, err := decodeCommand(typ, body)
		if err != nil {
			return err
		}
		if n++; c.Restore != nil && (n > 1 || len(d.b) > 0) {
			return errors.New("a restore is not alone in its entry")
		}
		fn(c)
	}
	return nil
}

func decodeCommand(typ uint64, body []byte) (Command, error) {
	switch typ {
	case typePut, typeDelete:
		op, err := decodeOp(typ, body)
		return Command{Ops: []Op{op}}, err
	case typeBatch:
		return decodeBatch(body)
	case typeConfiguration:
		return decodeConfiguration(body)
	case typeRestore:
		return decodeRestore(body)
	}
	if f, known, err := decodeFurther(typ, body); known {
		return Command{further: f}, err
	}
	return Command{}, fmt.Errorf("%w: type %d", ErrUnknownCommand, typ)
}

func decodeOp(typ uint64, body []byte) (Op, error) {
	d := decoder{b: body}
	op := Op{Type: OpType(typ), Key: string(d.bytes()), Expect: d.varint()}
	if op.Type == Put {
		op.Expires = d.varint()
		op.Value, d.b = d.b, nil
	}
	if d.err != nil {
		return op, fmt.Errorf("%s: %w", op.Type, d.err)
	}
	if len(d.b) > 0 {
		return op, fmt.Errorf("%s: %d bytes left over", op.Type, len(d.b))
	}
	if err := op.validate(); err != nil {
		return op, fmt.Errorf("%s: %w", op.Type, err)
	}
	return op, nil
}

func decodeBatch(body []byte) (Command, error) {
	var c Command
	d := decoder{b: body}
	for len(d.b) > 0 {
		typ, opBody := d.frame()
		if d.err != nil {
			return c, fmt.Errorf("batch: %w", d.err)
		}
		if typ != typePut && typ != typeDelete {
			return c, fmt.Errorf("batch: %w: type %d", ErrUnknownCommand, typ)
		}
		op, err := decodeOp(typ, opBody)
		if err != nil {
			return c, fmt.Errorf("batch: operation %d: %w", len(c.Ops), err)
		}
		c.Ops = append(c.Ops, op)
	}
	if len(c.Ops) < 2 {
		return c, fmt.Errorf("batch of %d operations", len(c.Ops))
	}
	return c, nil
}

func decodeConfiguration(body []byte) (Command, error) {
	cfg := &Configuration{}
	d := decoder{b: body}
	for len(d.b) > 0 {
		field := d.uvarint()
		value := d.bytes()
		if d.err != nil {
			return Command{}, fmt.Errorf("configuration: %w", d.err)
		}
		if field != fieldClusterID {
			return Command{}, fmt.Errorf("configuration: %w: field %d", ErrUnknownCommand, field)
		}
		cfg.ClusterID = string(value)
	}
	if cfg.ClusterID == "" {
		return Command{}, errors.New("configuration without a cluster id")
	}
	return Command{Configuration: cfg}, nil
}

// decoder takes values off the front of b. After an error all its results are
// zero.
type decoder struct {
	b   []byte
	err error
}

var errShort = errors.New("entry ends too early")

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) bytes() []byte {
	n := d.uvarint()
	if n > uint64(len(d.b)) {
		d.fail()
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) frame() (typ uint64, body []byte) { return d.uvarint(), d.bytes() }

func (d *decoder) fail() {
	if d.err == nil {
		d.err = errShort
	}
	d.b = nil
}

// CheckCommand says whether data is one encoded command that this version
// knows. What comes from another member is checked before it is proposed: in the
// log it would stop every member.
func CheckCommand(data []byte) error {
	d := decoder{b: data}
	typ, body := d.frame()
	if d.err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, d.err)
	}
	if len(d.b) > 0 {
		return fmt.Errorf("%w: %d bytes left over", ErrInvalid, len(d.b))
	}
	if _, err := decodeCommand(typ, body); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return nil
}
