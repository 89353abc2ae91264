-- Turns the document's tree (see render.py) into what each format needs. It holds no raw HTML or
-- Typst, so that only this filter writes any.

local html = FORMAT:match("html")
local typst = FORMAT:match("typst")

local function escape(text)
  return (tostring(text):gsub("&", "&amp;"):gsub("<", "&lt;"):gsub('"', "&quot;"))
end

local function typst_string(text)
  return '"' .. text:gsub("\\", "\\\\"):gsub('"', '\\"'):gsub("\n", " ") .. '"'
end

-- A name as each template quotes it.
local function author(name)
  name = pandoc.utils.stringify(name)
  if typst then return pandoc.RawInline("typst", typst_string(name)) end
  return pandoc.RawInline("html", escape(name))
end

-- What an exhibit leads to, as a button's popover; report.css has it in the margin of a wide page.
-- Data of a figure's points and slider are for report.js.
local function menu(how, label, targets, sheets)
  local about, items, open, cell = how.menu, pandoc.List(), "#runs-" .. how.page, math.floor(how.cell)
  local code = "#code-" .. how.page .. "-" .. cell
  local function item(attributes, text) items:insert("<li><a " .. attributes .. ">" .. text .. "</a></li>") end
  if about.values then
    local file = "figures/" .. about.values
    item(('href="%s" download="%s" data-gzip="%s"'):format(file, about.values, file), "values (CSV)")
  end
  if about.picture then
    local kind = about.picture:match("%w+$"):upper()
    item(('href="#%s" download="%s"'):format(label, about.picture), kind == "SVG" and "picture (SVG)" or "picture")
  end
  if about.notebook ~= "" then
    item(('href="notebooks/%s"'):format(escape(about.notebook)), ("notebook %s, cell %d"):format(how.page, cell + 1))
  end
  if targets[code] then item('class="to-code" href="' .. code .. '"', "code") end
  if targets[open] then
    local count = #about.runs == 1 and escape(about.runs[1]) or ("%d runs"):format(#about.runs)
    items:insert(('<li><button type="button" popovertarget="%s">%s, settings</button></li>'):format(open:sub(2), count))
  end
  local button = '<button type="button" class="more" popovertarget="of-%s" aria-label="Sources of %s">⋯</button>'
  local list = '<div class="source" id="of-%s" popover><ul>%s</ul></div>'
  local found = pandoc.List({ button:format(label, about.number) .. list:format(label, table.concat(items)) })
  local data = about.interactive or {}
  local sheet = data.points and data.points.sheet
  if sheet and not sheets[sheet] then
    found:insert(('<img hidden alt="" id="%s" src="figures/%s">'):format(sheet, sheet))
    sheets[sheet] = true
  end
  if next(data) then
    local json = pandoc.json.encode(data):gsub("<", "\\u003c")
    found:insert('<script type="application/json">' .. json .. "</script>")
  end
  return pandoc.RawBlock("html", table.concat(found, "\n"))
end

-- The document without its parts, which Typst's errors can be traced to. A name is there once; a
-- link leads to the web or to what is there, and a picture of the web is a link. A citation's link
-- has the cited work as its title.
local function join(doc)
  local blocks, targets, repeated, works, sheets = pandoc.List(), {}, {}, {}, {}
  for number, part in ipairs(doc.blocks) do
    local refs = part.content[2]
    if refs and refs.identifier == "refs" then
      for _, work in ipairs(refs.content) do works["#" .. work.identifier] = pandoc.utils.stringify(work) end
    end
    if typst then blocks:insert(pandoc.RawBlock("typst", "// part " .. number)) end
    local how = pandoc.json.decode(part.attributes.how or "{}")
    for _, block in ipairs(part.content) do
      if block.t == "CodeBlock" and how.cell then
        block.identifier = ("code-%s-%d"):format(how.page, how.cell)
      elseif how.menu then
        block.attributes.menu = part.attributes.how
      end
    end
    if part.classes:includes("failed") then blocks:insert(part) else blocks:extend(part.content) end
  end
  doc.blocks = blocks
  doc.meta.author = pandoc.List(doc.meta.author or {}):map(author)
  local function note(element)
    local id = element.identifier
    if not id or id == "" then return nil end
    while targets["#" .. element.identifier] do
      repeated[id] = (repeated[id] or 0) + 1
      element.identifier = id .. "-" .. repeated[id]
    end
    targets["#" .. element.identifier] = true
    return element
  end
  doc = doc:walk({ Block = note, Inline = note })
  for _, block in ipairs(doc.blocks) do
    local how = block.t == "Div" and block.attributes.menu
    if how and html then block.content:insert(menu(pandoc.json.decode(how), block.identifier, targets, sheets)) end
    if how then block.attributes.menu = nil end
  end
  return doc:walk({
    Link = function(link)
      local web = link.target:lower():match("^https?://") or link.target:lower():match("^mailto:")
      if not web and not targets[link.target] then return link.content end
      if works[link.target] then link.title = works[link.target] end
      return link
    end,
    Image = function(image)
      if image.src:match("^figures/[%w._-]+$") then return nil end
      if image.src:lower():match("^https?://") then
        local shown = #image.caption > 0 and image.caption or image.src
        return pandoc.Link(shown, image.src)
      end
      if image.title == "" then return image.caption end
      return pandoc.Span(image.caption .. { pandoc.Str(" [no picture in this project: " .. image.title .. "]") })
    end,
  })
end

-- The name of a pair or a domain, such as usps->mnistm or MNIST-M.
local function on_one_line(str)
  if html then return pandoc.Span({ str }, { style = "white-space: nowrap" }) end
  if typst then return { pandoc.RawInline("typst", "#box["), str, pandoc.RawInline("typst", "]") } end
end

-- pandoc leaves text at the start of a table cell as it is, where Typst would see a heading or a
-- list in it.
local function Str(str)
  if str.text:match("^%W*[%w_]+%->[%w_]+%W*$") or str.text:match("MNIST%-M") then return on_one_line(str) end
  if not typst then return nil end
  local equals, rest = str.text:match("^(=+)(.*)$")
  if equals then return { pandoc.RawInline("typst", (equals:gsub("=", "\\="))), pandoc.Str(rest) } end
  if str.text:match("^[-+/]$") then return pandoc.RawInline("typst", "\\" .. str.text) end
  if str.text:match("^%d+%.$") then return pandoc.RawInline("typst", (str.text:gsub("%.", "\\."))) end
end

-- A formula's alternative text is its TeX.
local function Math(math)
  if not typst then return nil end
  local alt = "#[#set math.equation(alt: " .. typst_string(math.text) .. ");"
  return { pandoc.RawInline("typst", alt), math, pandoc.RawInline("typst", "]") }
end

-- A mean stays on one line with its deviation or interval, and a source with its target.
local function Inlines(inlines)
  local function is_sign(inline)
    local text = inline and inline.t == "Str" and inline.text or ""
    return text == "±" or text == "→" or text:match("^%[[+−]")
  end
  for i, inline in ipairs(inlines) do
    if inline.t == "Space" and (is_sign(inlines[i - 1]) or is_sign(inlines[i + 1])) then
      inlines[i] = pandoc.Str("\u{a0}")
    end
  end
  return inlines
end

-- Code: at the end of its section in HTML, folded; left out of print.
local function Blocks(blocks)
  local found, cells = pandoc.List(), pandoc.List()
  local function fold()
    if html and #cells > 0 then
      local summary = #cells == 1 and "Code of this section" or "Code of this section, %d cells"
      found:insert(pandoc.RawBlock("html", '<details class="code"><summary>' .. summary:format(#cells) .. "</summary>"))
      found:extend(cells)
      found:insert(pandoc.RawBlock("html", "</details>"))
      cells = pandoc.List()
    end
  end
  for i, block in ipairs(blocks) do
    if block.t == "Header" then fold() end
    -- A notebook's question stays with its title, and both with what follows.
    local question = block.t == "Para" and #block.content == 1 and block.content[1].t == "Strong"
    if block.t == "CodeBlock" and block.classes:includes("cell") then
      cells:insert(block)
    elseif typst and question and i > 1 and blocks[i - 1].t == "Header" then
      found:extend({ pandoc.RawBlock("typst", "#block(sticky: true)["), block, pandoc.RawBlock("typst", "]") })
    else
      found:insert(block)
    end
  end
  fold()
  return found
end

local function bold(block)
  block.content = { pandoc.Strong(block.content) }
  return block
end

-- Of report.typ, in points: widths of a column and of the whole line, and of a table's cells.
local COLUMN, WHOLE, CHARACTER, INSET = 235, 487, 0.482, 6

-- What the columns of a table need, in characters of a usual width: with headings on one line; at
-- least, where numbers are not broken; and what most of their cells need.
local function needs(tbl, heads, rows)
  local whole, least, most = {}, {}, {}
  for i in ipairs(tbl.colspecs) do whole[i], least[i], most[i] = 0, 0, {} end
  local function width(text)
    return utf8.len(text) + 0.4 * select(2, text:gsub("%u", "")) + select(2, text:gsub("→", ""))
  end
  local function see(cells, head)
    for i, cell in ipairs(cells) do
      local text, longest = pandoc.utils.stringify(cell.contents), 0
      for word in text:gsub("MNIST%-", "MNIST_"):gmatch("[^%s/-]+-?") do longest = math.max(longest, width(word) * (head and 1.1 or 1)) end
      local length, number = width(text), tbl.colspecs[i][1] == "AlignRight"
      whole[i] = math.max(whole[i], head and 1.1 * length or length)
      least[i] = math.max(least[i], number and not head and length or longest)
      table.insert(most[i], head and longest or length)
    end
  end
  for _, row in ipairs(heads) do see(row.cells, true) end
  for _, row in ipairs(rows) do see(row.cells, false) end
  for i, lengths in ipairs(most) do
    table.sort(lengths)
    most[i] = math.max(least[i], lengths[math.ceil(0.9 * #lengths)])
  end
  return whole, least, most
end

-- Sets the widths of a table's columns in print. Returns whether it spans both columns of the page, the
-- size of its text, and whether it is as wide as it is by itself. Of the choices, each a line's width,
-- a size and perhaps a number of characters, the first one that fits is taken: the table by itself, or
-- with headings wrapped and longer texts, which get as much as each other, but at least that number.
local function set_widths(tbl, heads, rows, where)
  local whole, least, most = needs(tbl, heads, rows)
  local function total(size, lengths, level)
    local sum = 0
    for i, length in ipairs(lengths) do
      sum = sum + INSET + size * CHARACTER * math.max(least[i], math.min(length, level))
    end
    return sum
  end
  local in_column = pandoc.List({ { COLUMN, 8 }, { COLUMN, 7.2 }, { COLUMN, 7.2, 24 } })
  local across = { { WHOLE, 8 }, { WHOLE, 7.4 }, { WHOLE, 8, 22 }, { WHOLE, 7, 0 } }
  local choices = where == "cover" and across or in_column .. (where == "nested" and { { COLUMN, 7, 0 } } or across)
  if tbl.classes:includes("small") then choices, most = { { COLUMN, 6.8, 0 } }, whole end
  for n, choice in ipairs(choices) do
    local line, size, level = table.unpack(choice)
    if total(size, whole, 1000) <= line then
      tbl.colspecs = tbl.colspecs:map(function(spec) return { spec[1] } end)
      return line == WHOLE, size, true
    end
    local shared = 200
    while shared > (level or 200) and total(size, most, shared) > line do shared = shared - 1 end
    local needed = total(size, most, shared)
    if level and needed <= line or n == #choices then
      tbl.colspecs = tbl.colspecs:map(function(spec, i)
        local length = math.max(least[i], math.min(most[i], shared))
        return { spec[1], (INSET + size * CHARACTER * length) / math.max(line, needed) }
      end)
      return line == WHOLE, size, false
    end
  end
end

-- One heading over both ends of an interval, "… from" and "to".
local function join_intervals(row)
  local cells = pandoc.List()
  for _, cell in ipairs(row and row.cells or {}) do
    local last = cells[#cells]
    local before = last and last.contents[1] and last.contents[1].content
    local ends = before and #before > 1 and pandoc.utils.stringify(before[#before]) == "from"
    if ends and pandoc.utils.stringify(cell.contents) == "to" then
      before:remove(#before)
      last.contents[1].content, last.col_span, last.alignment = before, 2, "AlignCenter"
    else
      cells:insert(cell)
    end
  end
  if row then row.cells = cells end
end

-- A table in print, whose place is left to report.typ; only a head is set apart.
local function printed(tbl, where)
  local heads, rows, simple = pandoc.List(tbl.head.rows), pandoc.List(), true
  local head, bodies = tbl.head, tbl.bodies
  for _, body in ipairs(bodies) do
    rows = rows .. body.body
    heads = heads .. body.head
  end
  for _, row in ipairs(heads .. rows) do
    for _, cell in ipairs(row.cells) do simple = simple and cell.col_span == 1 and cell.row_span == 1 end
  end
  local span, size, natural = false, 8, true
  if simple then span, size, natural = set_widths(tbl, heads, rows, where) end
  local open = where == "nested" and "#block" or string.format("#table-exhibit(span: %s, natural: %s)", span, natural)
  open = open .. string.format("[\n#show table: set text(%.1fpt)\n", size)
  if size < 7 then open = open .. "#set table(inset: (x: 3pt, y: 1.2pt))\n" end
  if #heads == 0 then open = open .. "#set table(stroke: (..) => (bottom: 0.3pt + luma(200)))\n" end
  for _, row in ipairs(heads) do
    join_intervals(row)
    for _, cell in ipairs(row.cells) do cell.contents = cell.contents:walk({ Plain = bold, Para = bold }) end
  end
  tbl.head, tbl.bodies = head, bodies
  return { pandoc.RawBlock("typst", open), tbl, pandoc.RawBlock("typst", "]") }
end

-- A wide table scrolls by itself, so that a phone's page does not.
local function Table(tbl)
  if not html then return nil end
  local head = tbl.head
  for _, row in ipairs(head.rows) do join_intervals(row) end
  tbl.head = head
  return { pandoc.RawBlock("html", '<div class="scroll" tabindex="0">'), tbl, pandoc.RawBlock("html", "</div>") }
end

-- `share` is the picture's width as a share of the text's.
local function Image(image)
  local share = tonumber(image.attributes.share) or 1
  local number, unit = (image.attributes.width or ""):match("^([%d.]+)([%a%%]*)$")
  if tonumber(number) then share = math.min(share, number / (unit == "%" and 100 or 672)) end
  image.attributes.width = nil
  local alt = image.attributes.alt or pandoc.utils.stringify(image.caption)
  if typst then
    return pandoc.RawInline("typst", string.format(
      "#picture(%s, %s, %.3f)", typst_string(image.src), typst_string(alt), share))
  end
  image.attributes.share = nil
  if share < 1 then image.attributes.style = string.format("max-width: %d%%", math.floor(100 * share + 0.5)) end
  return image
end

local function Div(div)
  if typst and div.classes:includes("runs") then return {} end
  if html and div.classes:includes("runs") then
    local open = '<div popover class="runs" id="' .. div.identifier .. '">'
    return { pandoc.RawBlock("html", open), pandoc.Div(div.content), pandoc.RawBlock("html", "</div>") }
  end
  if typst and (div.classes:includes("figure") or div.classes:includes("table")) then
    -- The name is that of the exhibit itself, which may float to another page.
    for _, block in ipairs(div.content) do
      if block.t == "Figure" or block.t == "Table" then block.identifier = div.identifier end
    end
    return div.content
  end
  local name = div.identifier == "refs" and "references" or div.classes[1]
  if typst and pandoc.List({ "references", "abstract", "failed", "subtitle" }):includes(name) then
    return { pandoc.RawBlock("typst", "#" .. name .. "["), pandoc.Div(div.content), pandoc.RawBlock("typst", "]") }
  end
  -- How the report was made: folded on the first page of the HTML, at the end in print.
  if div.classes:includes(typst and "screen" or "print") then return {} end
  if html and div.classes:includes("screen") then
    local blocks = pandoc.List({ pandoc.RawBlock("html", "<details><summary>How it was made</summary>") })
    blocks:extend(div.content)
    blocks:insert(pandoc.RawBlock("html", "</details>"))
    return blocks
  end
  -- The summary figure: columns of panels, then the caption.
  if typst and div.classes:includes("summary") then
    local blocks, columns = pandoc.List(), pandoc.List(div.content)
    local caption = columns:remove()
    blocks:insert(pandoc.RawBlock("typst", "#summary(["))
    blocks:extend(caption.content)
    for _, column in ipairs(columns) do
      blocks:insert(pandoc.RawBlock("typst", "], ["))
      blocks:extend(column.content)
    end
    blocks:insert(pandoc.RawBlock("typst", "])"))
    return blocks
  end
end

-- An exhibit in print, of which a picture's width decides where it is; other figures stay in the text.
local function exhibit(block, where)
  if block.t == "Table" then return pandoc.List(printed(block, where)) end
  local picture
  block:walk({ RawInline = function(raw)
    local src, share = raw.text:match('^#picture%(("[^"]*"),.* ([%d.]+)%)$')
    picture = src and src .. ", " .. share
  end })
  if not picture then return pandoc.List({ block }) end
  local open = pandoc.RawBlock("typst", "#picture-exhibit(" .. picture .. ")[")
  return pandoc.List({ open, block, pandoc.RawBlock("typst", "]") })
end

-- Exhibits in print. Those of the first pages, which have a single column, stay where they
-- are, and so do tables in other blocks. A heading with nothing below it but an exhibit goes with that.
local function place(doc)
  if not typst then return nil end
  local blocks, heading, where = pandoc.List(), nil, nil
  local alone, following, exhibits = {}, "Header", false -- headings with nothing but exhibits below
  for i = #doc.blocks, 1, -1 do
    local block = doc.blocks[i]
    if block.t == "Table" or block.t == "Figure" then
      exhibits = true
    elseif not (block.t == "RawBlock" and block.text:match("^//")) then
      alone[i] = block.t == "Header" and exhibits and following == "Header"
      following, exhibits = block.t, false
    end
  end
  for i, block in ipairs(doc.blocks) do
    if block.identifier == "provenance" then where = "nested" end -- whose tables stay where they are
    if alone[i] then
      heading = block
    elseif block.t == "Table" or block.t == "Figure" then
      local found = exhibit(block, where)
      if heading then found:insert(math.min(2, #found), heading) end
      blocks:extend(found)
      heading = nil
    elseif block.t == "Div" and block.classes:includes("cover") then
      blocks:insert(pandoc.RawBlock("typst", "#single["))
      blocks:extend(block:walk({ Table = function(tbl) return printed(tbl, "cover") end }).content)
      blocks:insert(pandoc.RawBlock("typst", "]\n#contents()"))
    else
      blocks:insert(block:walk({ Table = function(tbl) return printed(tbl, "nested") end }))
    end
  end
  doc.blocks = blocks
  return doc
end

return {
  { Pandoc = join },
  { Str = Str, Math = Math, Inlines = Inlines, Blocks = Blocks, Table = Table, Image = Image, Div = Div, Pandoc = place },
}
