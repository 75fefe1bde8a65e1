package backup

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// S3Scheme begins the name of a place in a bucket: s3://BUCKET/PREFIX.
const S3Scheme = "s3://"

// DefaultS3Endpoint is where buckets are looked for.
const DefaultS3Endpoint = "https://s3.amazonaws.com"

const (
	// s3Stall is how long a server may take no byte and send none.
	s3Stall = time.Minute
	// s3Tries is how often one request is sent. Who saves tries again later.
	s3Tries = 3
)

// S3Config says how to reach a service that speaks the protocol of Amazon S3.
type S3Config struct {
	Endpoint string // URL without a path; default DefaultS3Endpoint
	Insecure bool   // the endpoint may be http://
	Region   string // default: the one the service names; us-east-1 outside of Amazon
	// CAFile holds PEM certificates that are trusted beside the system's.
	CAFile string
	// PathStyle puts the bucket into the path of the URL instead of the host name.
	// Services other than Amazon's and Google's are addressed so anyway.
	PathStyle bool

	// CredentialsFile has the form of Amazon's ~/.aws/credentials; only its owner
	// may read it. It is read again for each operation, so keys can be exchanged.
	CredentialsFile string
	// AccessKey, SecretKey and SessionToken (which may be empty) are used without
	// a CredentialsFile.
	AccessKey, SecretKey, SessionToken string
}

// S3 is a Place in a bucket. Safe for concurrent use.
type S3 struct {
	bucket, prefix string
	endpoint       string
	file           string
	creds          *credentials.Credentials
	core           *minio.Core
	partSize       int
}

// ParseS3 splits s3://BUCKET/PATH. Neither may be malformed; PATH may be empty.
func ParseS3(s string) (bucket, path string, err error) {
	rest, ok := strings.CutPrefix(s, S3Scheme)
	bucket, path, _ = strings.Cut(rest, "/")
	path = strings.Trim(path, "/")
	switch {
	case !ok || bucket == "":
		return "", "", fmt.Errorf("%q: want s3://BUCKET/PREFIX", s)
	case strings.ContainsAny(bucket, ":@?# ") || len(bucket) < 3 || len(bucket) > 63:
		return "", "", fmt.Errorf("%q: %q is no name of a bucket", s, bucket)
	case strings.Contains(path, "//") || strings.Contains("/"+path+"/", "/../") || strings.Contains("/"+path+"/", "/./"):
		return "", "", fmt.Errorf("%q: no part of the path may be empty, a dot or two dots", s)
	}
	return bucket, path, nil
}

// NewS3 checks c and makes the place named s3://BUCKET/PREFIX. It asks nobody.
func NewS3(name string, c S3Config) (*S3, error) {
	bucket, prefix, err := ParseS3(name)
	if err != nil {
		return nil, err
	}
	if c.Endpoint == "" {
		c.Endpoint = DefaultS3Endpoint
	}
	u, err := url.Parse(c.Endpoint)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		return nil, fmt.Errorf("S3 endpoint %q: want https://HOST or https://HOST:PORT", c.Endpoint)
	case u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "":
		return nil, fmt.Errorf("S3 endpoint %q: want a host only; bucket and prefix are in s3://BUCKET/PREFIX", u.Redacted())
	case u.Scheme == "http" && !c.Insecure:
		return nil, fmt.Errorf("S3 endpoint %s is not encrypted; use https, or say that this is wanted", c.Endpoint)
	}
	s := &S3{bucket: bucket, endpoint: c.Endpoint, file: c.CredentialsFile, partSize: 8 << 20}
	if prefix != "" {
		s.prefix = prefix + "/"
	}
	switch {
	case c.CredentialsFile != "":
		s.creds = credentials.NewFileAWSCredentials(c.CredentialsFile, "")
		if err := s.fresh(); err != nil {
			return nil, err
		}
	case c.AccessKey == "" || c.SecretKey == "":
		return nil, errors.New("S3 credentials are missing: an access key and its secret key")
	default:
		s.creds = credentials.NewStaticV4(c.AccessKey, c.SecretKey, c.SessionToken)
	}
	if c.Region == "" && !strings.HasSuffix(u.Hostname(), ".amazonaws.com") {
		c.Region = "us-east-1"
	}
	transport, err := s3Transport(c.CAFile)
	if err != nil {
		return nil, err
	}
	o := &minio.Options{Creds: s.creds, Secure: u.Scheme == "https", Transport: transport, Region: c.Region, MaxRetries: s3Tries}
	if c.PathStyle {
		o.BucketLookup = minio.BucketLookupPath
	}
	if s.core, err = minio.NewCore(u.Host, o); err != nil {
		return nil, fmt.Errorf("S3 endpoint %s: %w", c.Endpoint, err)
	}
	return s, nil
}

// s3Transport gives up on a server that is silent, which may die in the middle
// of an upload of any length.
func s3Transport(caFile string) (*http.Transport, error) {
	t := &http.Transport{
		Proxy: http.ProxyFromEnvironment,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return stallConn{conn}, nil
		},
		TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: 10 * time.Second,
		IdleConnTimeout:     10 * time.Second,
		MaxIdleConnsPerHost: 2,
		DisableCompression:  true,
	}
	if caFile != "" {
		pem, err := os.ReadFile(caFile)
		if err != nil {
			return nil, fmt.Errorf("S3 CA file: %w", err)
		}
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("S3 CA file %s holds no PEM certificate", caFile)
		}
		t.TLSClientConfig.RootCAs = pool
	}
	return t, nil
}

type stallConn struct{ net.Conn }

func (c stallConn) Read(p []byte) (int, error) {
	c.SetReadDeadline(time.Now().Add(s3Stall))
	return c.Conn.Read(p)
}

func (c stallConn) Write(p []byte) (int, error) {
	c.SetDeadline(time.Now().Add(s3Stall)) // what it sends waits for what it gets
	return c.Conn.Write(p)
}

// String implements Place.
func (s *S3) String() string { return strings.TrimSuffix(S3Scheme+s.bucket+"/"+s.prefix, "/") }

// fresh makes sure that the credentials are those in the file.
func (s *S3) fresh() error {
	if s.file == "" {
		return nil
	}
	st, err := os.Stat(s.file)
	if err != nil {
		return fmt.Errorf("S3 credentials: %w", err)
	}
	if mode := st.Mode().Perm(); st.Mode().IsRegular() && mode&0o077 != 0 {
		return fmt.Errorf("S3 credentials: %s has mode %04o, so others can read it: chmod 600 %s", s.file, mode, s.file)
	}
	s.creds.Expire()
	v, err := s.creds.Get()
	switch {
	case err != nil:
		return fmt.Errorf("S3 credentials: %s: %w", s.file, err)
	case v.AccessKeyID == "" || v.SecretAccessKey == "":
		return fmt.Errorf("S3 credentials: %s has no aws_access_key_id and aws_secret_access_key for the profile", s.file)
	}
	return nil
}

func (s *S3) key(name string) (string, error) {
	if name == "" || name == "." || name == ".." || strings.Contains(name, "/") {
		return "", fmt.Errorf("%q is no name of a file", name)
	}
	return s.prefix + name, nil
}

// List implements Place. A bucket without anything below the prefix is an empty
// place.
func (s *S3) List(ctx context.Context) ([]Entry, error) {
	if err := s.fresh(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the listing when an error does
	var out []Entry
	for o := range s.core.Client.ListObjects(ctx, s.bucket, minio.ListObjectsOptions{Prefix: s.prefix}) {
		if o.Err != nil {
			return nil, s.explain("list", o.Err)
		}
		name := strings.TrimPrefix(o.Key, s.prefix)
		if name == "" || strings.HasSuffix(name, "/") {
			continue
		}
		out = append(out, Entry{Name: name, Size: o.Size, Modified: o.LastModified.UTC()})
	}
	return out, ctx.Err()
}

// Open implements Place.
func (s *S3) Open(ctx context.Context, name string) (io.ReadCloser, Entry, error) {
	key, err := s.key(name)
	if err == nil {
		err = s.fresh()
	}
	if err != nil {
		return nil, Entry{}, err
	}
	r, o, _, err := s.core.GetObject(ctx, s.bucket, key, minio.GetObjectOptions{})
	if err != nil {
		return nil, Entry{}, s.explain("read "+name, err)
	}
	return r, Entry{Name: name, Size: o.Size, Modified: o.LastModified.UTC()}, nil
}

// Remove implements Place.
func (s *S3) Remove(ctx context.Context, name string) error {
	key, err := s.key(name)
	if err == nil {
		err = s.fresh()
	}
	if err != nil {
		return err
	}
	if err := s.core.RemoveObject(ctx, s.bucket, key, minio.RemoveObjectOptions{}); err != nil {
		return s.explain("remove "+name, err)
	}
	return nil
}

// explain turns the answers that operators cause into what to do.
func (s *S3) explain(what string, err error) error {
	var about *url.Error
	if errors.As(err, &about) {
		err = about.Err // its address is that of the request, with all parameters
	}
	hint := ""
	switch r := minio.ToErrorResponse(err); r.Code {
	case minio.NoSuchKey:
		return fmt.Errorf("%s in %s: %w", what, s, fs.ErrNotExist)
	case minio.NoSuchBucket:
		hint = "make the bucket, or correct its name"
	case "InvalidAccessKeyId":
		hint = "the service does not know the access key"
	case minio.SignatureDoesNotMatch:
		hint = "the secret key is not that of the access key"
	case minio.AccessDenied:
		hint = "the access key may not do this: it needs to list the bucket, and to get, put and delete objects below the prefix"
	case "RequestTimeTooSkewed":
		hint = "correct the clock of this host"
	case "AuthorizationHeaderMalformed", "PermanentRedirect", "IllegalLocationConstraintException":
		hint = "the bucket is in another region than the one given"
	}
	var unknown x509.UnknownAuthorityError
	var plain tls.RecordHeaderError
	switch {
	case errors.As(err, &unknown):
		hint = "its certificate is of a CA that is not trusted here: give the CA file"
	case errors.As(err, &plain):
		hint = "it does not speak TLS"
	}
	if hint != "" {
		return fmt.Errorf("%s in %s at %s: %w (%s)", what, s, s.endpoint, err, hint)
	}
	return fmt.Errorf("%s in %s at %s: %w", what, s, s.endpoint, err)
}
